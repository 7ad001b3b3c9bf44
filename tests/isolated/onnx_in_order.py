"""Imports and loads in the order of its arguments, then uses everything at once:
`torch` and `onnxruntime` are imported, `onnx=FILE` and `torchscript=FILE` loaded. The
files hold y = 2x."""

import asyncio
import importlib
import sys

import numpy as np

import pyasyncml as ml

X = np.ones((1, 4), np.float32)


async def main(steps):
    models, session = [], None
    for step in steps:
        what, _, path = step.partition("=")
        if path:
            models.append(await ml.load(path))
        else:
            module = importlib.import_module(what)
            if what == "onnxruntime":
                onnx_file = next(s for s in steps if s.startswith("onnx=")).split("=")[
                    1
                ]
                session = module.InferenceSession(onnx_file)
    if "onnxruntime" not in steps:
        assert "onnxruntime" not in sys.modules  # never imported by us
    results = await asyncio.gather(*(m.infer(X) for m in models for _ in range(20)))
    for y in results:
        assert np.array_equal(y, 2 * X)
    if session is not None:
        assert np.array_equal(session.run(None, {"x": X})[0], 2 * X)
    await asyncio.gather(*(model.close() for model in models))


asyncio.run(main(sys.argv[1:]))
