"""Frameworks in one process, in the order of the arguments: imports, and ours."""

import asyncio
import sys

import numpy as np


def torch():
    import torch

    assert torch.ones(3, 3).mm(torch.ones(3, 3)).sum() == 27


def tensorflow():
    import tensorflow as tf

    assert float(tf.reduce_sum(tf.ones([3, 3]) @ tf.ones([3, 3]))) == 27


def onnxruntime():
    import onnxruntime

    assert onnxruntime.get_available_providers()


def ours():
    import pyasyncml as ml

    async def main():
        async with ml.load(sys.argv[1]) as model:
            x = np.ones((2, 4), np.float32)
            results = await asyncio.gather(*(model.infer(x, x) for _ in range(20)))
            assert all(result["b"].sum() == 0 for result in results)

    asyncio.run(main())


for name in sys.argv[2:]:
    globals()[name]()
print("ended well")
