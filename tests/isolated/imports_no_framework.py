"""Models are loaded and run, and a SavedModel is trained, by the frameworks' libraries
alone: none of their Python is imported.

    imports_no_framework.py FILE.onnx
    imports_no_framework.py SAVEDMODELS
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

import pyasyncml as ml

FRAMEWORKS = {"tensorflow", "keras", "onnxruntime", "onnx", "torch", "jax"}


async def serve(path):
    x = np.ones((1, 4), np.float32)
    async with ml.load(path) as model:
        assert (await model.infer(*[x] * len(model.signature.inputs))) is not None


async def train(path):
    x, y = np.ones((32, 64), np.float32), np.zeros(32, np.int64)
    async with (
        await ml.Trainer.load(path) as trainer,
        ml.load(path, entry="predict") as served,
    ):
        await trainer.fit((x, y))
        await served.update_weights(trainer)


if sys.argv[1].endswith(".onnx"):
    asyncio.run(serve(sys.argv[1]))
else:
    asyncio.run(serve(Path(sys.argv[1], "several")))
    asyncio.run(train(Path(sys.argv[1], "training")))
imported = FRAMEWORKS & set(sys.modules)
assert not imported, imported
