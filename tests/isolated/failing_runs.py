"""Runs that fail in the library: "onnx" or "savedmodel", the model's path; "xla" if
that backend comes first."""

import asyncio
import sys

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.backends import xla


async def main(kind, path):
    if kind == "onnx":
        x = np.ones(6, np.float32)
        async with ml.load(path) as model:
            for _ in range(3):
                with pytest.raises(ml.BackendError, match="the_reshape"):
                    await model.infer(x, np.int64([4, 2]))
        return
    x = np.ones((2, 4), np.float32)
    async with ml.load(path) as model, ml.load(path, entry="positive") as positive:
        for _ in range(3):
            with pytest.raises(ml.BackendError, match="Incompatible shapes"):
                await model.infer(x, x[:1].repeat(3, 0))
            with pytest.raises(ml.BackendError, match="not positive"):
                await positive.infer(-x[0])


if sys.argv[3:] == ["xla"]:
    xla.capsule()
asyncio.run(main(*sys.argv[1:3]))
