"""What is live of Keras and TensorFlow gives numpy arrays, as a SavedModel does.

tensorflow_live.py <a folder with keras.keras and keras.npz>
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import pyasyncml as ml

FOLDER = Path(sys.argv[1])


class Counter(tf.Module):
    def __init__(self):
        self.count = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def __call__(self, n):
        return self.count.assign_add(n)

    def variable(self):
        return self.count


def several(x):
    parts = {"twice": x * 2, "sum": tf.reduce_sum(x), "axes": x.shape.rank}
    return parts, [tf.cast(x, tf.bfloat16), tf.as_string(x)], tf.constant("s")


async def main():
    model = keras.models.load_model(FOLDER / "keras.keras")
    saved = np.load(FOLDER / "keras.npz")
    async with ml.load(model) as live:
        scores = await live.infer([saved["pixels"], saved["extra"]])
        assert type(scores) is np.ndarray
        assert np.allclose(scores, saved["scores"], rtol=1e-5)
    async with ml.load(tf.function(several)) as live:
        parts, (short, text), one = await live.infer(np.ones(3))
        assert (parts["twice"] == [2, 2, 2]).all()
        assert (type(parts["sum"]), parts["sum"].shape) == (np.ndarray, ())
        assert short.dtype.name == "bfloat16"
        assert (text.dtype, text[0][:2]) == (object, b"1.")
        assert (one.dtype, one.shape, one.item()) == (object, (), b"s")
    counter = Counter()
    for source in (counter, counter.__call__):
        async with ml.load(source) as live:
            count = await live.infer(5)
            assert (type(count), int(count)) == (np.ndarray, 5)
            counter.count.assign(0)
    async with ml.load(counter, entry="variable") as live:
        count = await live.infer()
        assert (type(count), int(count)) == (np.ndarray, 0)
    async with ml.load(lambda: counter.count) as live:  # anybody's callable: as it is
        assert await live.infer() is counter.count


asyncio.run(main())
