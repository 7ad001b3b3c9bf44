"""Loads a model cut off in so many places, and with bits flipped as often, and runs
what loads. Prints as JSON how often which way it ended; a crash or a hang is for who
started this to see.

    corrupt.py SOURCE BACKEND COUNT

Each either loads, as one does whose weights are others, or is a LoadError that names
the path."""

import asyncio
import collections
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import pyasyncml as ml


def cut_off(content, chance):
    return content[: chance.randrange(len(content))]


def flipped(content, chance):
    """One bit, or eight; half of them at the beginning: much of the rest is weights."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 8))):
        most = chance.choice((len(content), min(len(content), 600)))
        damaged[chance.randrange(most)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zeros(spec):
    return np.zeros([size or 1 for size in spec.shape or ()], spec.dtype or "float32")


async def outcome(path, backend):
    try:
        async with ml.load(path, backend=backend) as model:
            try:
                inputs = [zeros(spec) for spec in model.signature.inputs]
                await model.infer(*inputs, timeout=2.0)
            except (ml.Error, TypeError) as error:
                str(error).encode()  # whatever its bytes were
                return "fails"
            return "loads"
    except ml.LoadError as error:
        message = str(error)
    message.encode()
    return "refused" if str(path) in message else f"refused, by no path: {message}"


async def main(source, backend, count):
    chance = random.Random(7)
    found = {
        "cut_off": collections.Counter(),
        "flipped": collections.Counter(),
        "whole": collections.Counter(),
    }
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "model")
        if source.is_dir():
            shutil.copytree(source, copy)
            files = [path for path in sorted(copy.rglob("*")) if path.is_file()]
            # A SavedModel's graph above all.
            files += 4 * [path for path in files if path.name == "saved_model.pb"]
        else:
            shutil.copy(source, copy)
            files = [copy]
        for damage in (cut_off, flipped):
            for _ in range(count):
                path = chance.choice(files)
                content = path.read_bytes()
                path.write_bytes(damage(content, chance))
                found[damage.__name__][await outcome(copy, backend)] += 1
                path.write_bytes(content)
        found["whole"][await outcome(copy, backend)] += 1
    print(json.dumps(found))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
