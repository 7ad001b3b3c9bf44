"""Loads a SavedModel damaged in many ways; prints how often which way it ended."""

import asyncio
import collections
import os
import random
import shutil
import sys
import tempfile

import pyasyncml as ml


async def outcome(path):
    try:
        async with ml.load(path) as model:
            assert model.signature.inputs
    except ml.LoadError as error:
        return "LoadError" if str(error) else "an error that says nothing"
    return "loaded"


def damaged(content, rng):
    """Cut off, or with one bit flipped, or with eight."""
    content = bytearray(content)
    how = rng.randrange(3)
    if how == 0:
        return content[: rng.randrange(len(content))]
    for _ in range(1 if how == 1 else 8):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


async def main(source, count, seed):
    rng = random.Random(seed)
    names = ["saved_model.pb", "variables/variables.index"]
    names += ["variables/variables.data-00000-of-00001"]
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "model")
        shutil.copytree(source, copy)
        for _ in range(count):
            name = names[0] if rng.random() < 0.7 else rng.choice(names[1:])
            path = os.path.join(copy, name)
            with open(path, "rb") as file:
                whole = file.read()
            with open(path, "wb") as file:
                file.write(damaged(whole, rng))
            counts[await outcome(copy)] += 1
            with open(path, "wb") as file:
                file.write(whole)
        counts["whole: " + await outcome(copy)] += 1
    print(dict(counts))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
