"""Loads 300 truncations and 300 models with flipped bits, and runs those that load.
Prints how many did; a crash or a hang is for who started this to see."""

import asyncio
import random
import sys
from pathlib import Path

import numpy as np

import pyasyncml as ml

MUTANTS = 300


def mutants(content):
    chance = random.Random(0)
    for _ in range(MUTANTS):
        yield content[: chance.randrange(1, len(content))]
    for _ in range(MUTANTS):
        mutant = bytearray(content)
        for _ in range(chance.choice((1, 1, 8))):
            # Half of them in what describes the model: most of it is weights.
            most = chance.choice((len(content), min(len(content), 600)))
            mutant[chance.randrange(most)] ^= 1 << chance.randrange(8)
        yield bytes(mutant)


async def attempt(path, images):
    """What came of it: "loads", "refused", "fails"."""
    try:
        async with ml.load(path, backend="onnx") as model:
            try:
                await model.infer(images, timeout=2.0)
            except (ml.Error, TypeError) as error:
                str(error).encode()  # whatever its bytes were
                return "fails"
            return "loads"
    except ml.LoadError as error:
        str(error).encode()  # whatever its bytes were
        return "refused"


async def main(model, shape):
    images = np.zeros(shape, np.float32)
    path = Path(model).with_name("mutant.onnx")
    counts = {"loads": 0, "refused": 0, "fails": 0}
    for mutant in mutants(Path(model).read_bytes()):
        path.write_bytes(mutant)
        counts[await attempt(path, images)] += 1
    assert sum(counts.values()) == 2 * MUTANTS
    print(*(f"{count} {what}" for what, count in counts.items()), sep=", ")


asyncio.run(main(sys.argv[1], [int(size) for size in sys.argv[2:]]))
