"""Trains a bundle without JAX in the process: until it is killed, or on from there."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import pyasyncml as ml

path, folder, epochs, how = sys.argv[1:]
folder = Path(folder)
with np.load(folder / "data.npz") as data:
    arrays = (data["x"], data["y"])


def leaves(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if not isinstance(tree, (list, tuple)):
        return [tree]
    return [leaf for item in tree for leaf in leaves(item)]


async def main():
    async with await ml.Trainer.load(path, seed=3) as trainer:
        if how == "killed":
            run = trainer.fit(arrays, epochs=int(epochs))
            while len(run._losses) < 25:
                await trainer.save(folder / "saved")
            os.kill(os.getpid(), signal.SIGKILL)
        await trainer.restore(folder / "saved")
        print(json.dumps((await trainer.fit(arrays, epochs=int(epochs))).losses))
        np.savez(folder / "trained.npz", *leaves(await trainer.state()))
    assert "jax" not in sys.modules


asyncio.run(main())
