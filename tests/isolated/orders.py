"""Frameworks in one process, in the order of the arguments: a name is imported,
NAME=FILE loaded by `pyasyncml.load` and served at once; in the end all that are loaded
are served together, and what was imported computes.

Every FILE holds y = 2 x, float32 [n, 4]."""

import asyncio
import importlib
import sys

import numpy as np

import pyasyncml as ml

X = np.ones((3, 4), np.float32)
CLIENTS, REQUESTS = 8, 25


def computes_with_torch(torch):
    assert torch.ones(3, 3).mm(torch.ones(3, 3)).sum() == 27


def computes_with_tensorflow(tf):
    assert float(tf.reduce_sum(tf.ones([3, 3]) @ tf.ones([3, 3]))) == 27


def computes_with_onnxruntime(onnxruntime):
    path = next((s.partition("=")[2] for s in sys.argv if s.startswith("onnx=")), None)
    if path is not None:
        session = onnxruntime.InferenceSession(path)
        assert np.array_equal(session.run(None, {"x": X})[0], 2 * X)
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()


async def client(model):
    for _ in range(REQUESTS):
        assert np.array_equal(await model.infer(X), 2 * X)


async def main(steps):
    models, imported = [], {}
    for step in steps:
        name, _, path = step.partition("=")
        if path:
            models.append(await ml.load(path, instances=2))
            await client(models[-1])
        else:
            imported[name] = importlib.import_module(name)
            globals()[f"computes_with_{name}"](imported[name])
    for name in ("tensorflow", "onnxruntime"):
        assert (name in sys.modules) == (name in imported)  # never by us
    await asyncio.gather(*(client(m) for m in models for _ in range(CLIENTS)))
    for name, module in imported.items():
        globals()[f"computes_with_{name}"](module)
    await asyncio.gather(*(model.close() for model in models))


asyncio.run(main(sys.argv[1:]))
print("ended well")
