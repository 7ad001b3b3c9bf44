"""A Keras model trained on scikit-learn's digits by `await trainer.fit`, while 32
clients are served by the same process, against TensorFlow's own loops over the same
batches.

All of them start from the same weights and take the rows in the same order, so that
every loss must be the same to the last bit: those that aren't are counted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import savedmodels
from .load import Meter, Run

WORKLOAD, SERVED = "Keras digits", "Keras digits, served"
CLIENTS, BATCH, EPOCHS, SEED = 32, 32, 100, 0
FIT, BESIDE, NOTHING = "trainer.fit", "trainer.fit beside the clients", "no training"
#: TensorFlow's own: whether its step is a tf.function.
LOOPS = {"tf.function": True, "eager": False}
LONGER = 5  # than other runs: idle, and with the clients alone
WARM = 10  # steps: traced and allocated by then


def missing() -> list[str]:
    """The packages that aren't there."""
    return [
        name
        for name in ("tensorflow", "keras", "sklearn")
        if importlib.util.find_spec(name) is None
    ]


class Digits:
    """The data and the model, the same each time."""

    def __init__(self) -> None:
        import numpy as np
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        x = (data.images.reshape(-1, 64) / 16).astype(np.float32)
        y = data.target.astype(np.int64)
        train, test = train_test_split(
            range(len(y)), test_size=450, stratify=data.target, random_state=SEED
        )
        self.x, self.y = x[train], y[train]
        self.held_out, self.truth = x[test], y[test]

    def model(self) -> tuple[Any, Any, Any]:
        """With its loss and its optimizer."""
        savedmodels.tensorflow()
        import keras

        keras.utils.set_random_seed(SEED)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(64, activation="relu"),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return model, loss, keras.optimizers.Adam(1e-3)

    def write(self, path: Path) -> None:
        import pyasyncml

        model, loss, optimizer = self.model()
        example = (self.x[:2], self.y[:2])
        pyasyncml.export.tensorflow(
            model, path, inputs=example, loss=loss, optimizer=optimizer
        )

    def batches(self, epochs: int) -> Any:
        """In the order of `trainer.fit`, which is of the seed and the epoch."""
        import numpy as np

        for epoch in range(epochs):
            rows = np.random.default_rng([SEED, epoch]).permutation(len(self.x))
            for first in range(0, len(rows), BATCH):
                batch = rows[first : first + BATCH]
                yield self.x[batch], self.y[batch]


def own_loop(digits: Digits, compiled: bool, epochs: int, expected: list[float]) -> Run:
    """TensorFlow's loop over the whole training, and how many losses are others than
    those expected."""
    tf = savedmodels.tensorflow()
    model, loss, optimizer = digits.model()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(value, variables), variables, strict=True)
        )
        return value

    optimizer.build(model.trainable_variables)
    one: Callable[..., Any] = tf.function(step) if compiled else step
    losses: list[float] = []
    began, cpu = time.monotonic(), time.process_time()
    for x, y in digits.batches(epochs):
        losses.append(float(one(x, y)))
        if len(losses) == WARM:
            began, cpu = time.monotonic(), time.process_time()
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    run = Run(len(losses) - WARM, wall, cpu, None, None, lag=None)
    return replace(run, differing=differing(losses, expected))


def differing(losses: list[float], expected: list[float]) -> int:
    import numpy as np

    mine, theirs = np.array(losses, np.float32), np.array(expected, np.float32)
    assert mine.shape == theirs.shape, "another number of steps"
    return int((mine.view(np.uint32) != theirs.view(np.uint32)).sum())


class Training:
    """The exported model, trained and served; `open` makes one."""

    def __init__(self, digits: Digits, trainer: Any, served: Any) -> None:
        self.digits = digits
        self.trainer = trainer
        self.served = served

    @classmethod
    @asynccontextmanager
    async def open(cls, digits: Digits, path: Path) -> AsyncIterator[Training]:
        import pyasyncml

        async with (
            await pyasyncml.Trainer.load(path, seed=SEED) as trainer,
            pyasyncml.load(path, entry="predict") as served,
        ):
            yield cls(digits, trainer, served)

    async def fit(self, epochs: int) -> tuple[Run, list[float]]:
        """The steps of the training alone, and the losses."""
        began, cpu = time.monotonic(), time.process_time()
        history = await self.trainer.fit(
            (self.digits.x, self.digits.y), epochs=epochs, batch_size=BATCH
        )
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        return Run(history.steps, wall, cpu, None, None, lag=None), history.losses

    async def clients(self, beside: asyncio.Task[Any] | None, seconds: float) -> Run:
        """What the clients see until `beside` has ended, or for that long."""
        held_out, served = self.digits.held_out, self.served
        latencies = array("d")
        end = time.monotonic() + seconds

        async def client(at: int) -> None:
            while (
                time.monotonic() < end if beside is None else not beside.done()
            ) or not latencies:
                before = time.monotonic()
                await served.infer(held_out[at : at + 1])
                latencies.append(time.monotonic() - before)
                at = (at + 1) % len(held_out)

        meter = Meter(asyncio.get_running_loop())
        await asyncio.gather(*(client(i) for i in range(CLIENTS)))
        return meter.stop(latencies)

    async def accuracy(self) -> float:
        """On the held-out images, once the trained weights are served."""
        await self.served.update_weights(self.trainer)
        scores = await self.served.infer(self.digits.held_out)
        return float((scores.argmax(1) == self.digits.truth).mean())
