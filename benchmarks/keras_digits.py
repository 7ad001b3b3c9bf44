"""`python -m benchmarks.keras_digits`: a Keras model trained by `await trainer.fit` on
scikit-learn's digits, while 32 clients are served by the same process.

Prints the loss curve's difference to TensorFlow's own loop over the same batches, the
accuracy on 450 held-out images, steps per second of both, and how late the loop answers
a 1 ms heartbeat: idle, with the clients, and with the clients beside the training.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .beat import Beat, Lag

CLIENTS, BATCH, EPOCHS, SEED = 32, 32, 100, 0


def digits() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    x = (data.images.reshape(-1, 64) / 16).astype(np.float32)
    y = data.target.astype(np.int64)
    train, test = train_test_split(
        range(len(y)), test_size=450, stratify=data.target, random_state=SEED
    )
    return x[train], y[train], x[test], y[test]


def order(epoch: int, rows: int) -> Any:
    """The trainer's: of the seed and the epoch's number."""
    return np.random.default_rng([SEED, epoch]).permutation(rows)


def own_loop(
    model: Any, loss: Any, optimizer: Any, x: Any, y: Any, *, compiled: bool, steps: int
) -> tuple[list[float], float]:
    """TensorFlow's losses of the first so many steps, and its steps per second."""
    import tensorflow as tf

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(value, variables), variables, strict=True)
        )
        return value

    optimizer.build(model.trainable_variables)
    if compiled:
        step = tf.function(step)
    losses: list[float] = []
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        rows = order(epoch, len(x))
        for first in range(0, len(x), BATCH):
            batch = rows[first : first + BATCH]
            losses.append(float(step(x[batch], y[batch])))
            if len(losses) == 10:
                began = time.perf_counter()  # traced, allocated, warm
            if len(losses) == steps:
                return losses, (steps - 10) / (time.perf_counter() - began)
    return losses, (len(losses) - 10) / (time.perf_counter() - began)


def text(lag: Lag) -> str:
    return f"p50 {lag.p50_us:7.0f} us, p99 {lag.p99_us:7.0f} us"


async def main() -> None:
    import keras

    import pyasyncml as ml

    x, y, held_out, truth = digits()

    def make() -> tuple[Any, Any, Any]:
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

    model, loss, optimizer = make()
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits")
        await ml.call(
            ml.export.tensorflow,
            model,
            path,
            inputs=(x[:2], y[:2]),
            loss=loss,
            optimizer=optimizer,
        )
        async with (
            await ml.Trainer.load(path, seed=SEED) as trainer,
            ml.load(path, entry="predict") as served,
        ):
            count, going = 0, True

            async def client(i: int) -> None:
                nonlocal count
                while going:
                    await served.infer(held_out[i : i + 1])
                    count += 1
                    i = (i + 1) % len(held_out)

            beat = Beat(loop)
            await asyncio.sleep(2.0)
            idle = beat.stop()
            clients = [asyncio.create_task(client(i)) for i in range(CLIENTS)]
            beat, before = Beat(loop), count
            await asyncio.sleep(2.0)
            alone, alone_rate = beat.stop(), (count - before) / 2.0
            beat, before, began = Beat(loop), count, time.perf_counter()
            history = await trainer.fit((x, y), epochs=EPOCHS, batch_size=BATCH)
            seconds = time.perf_counter() - began
            beside, rate = beat.stop(), (count - before) / seconds
            going = False
            await asyncio.gather(*clients)
            began = time.perf_counter()
            more = await trainer.fit((x, y), epochs=EPOCHS, batch_size=BATCH)
            native = more.steps / (time.perf_counter() - began)
            await served.update_weights(trainer)
            scores = await served.infer(held_out)
    accuracy = float((scores.argmax(1) == truth).mean())
    losses, compiled = own_loop(*make(), x, y, compiled=True, steps=history.steps)
    eager_losses, eager = own_loop(*make(), x, y, compiled=False, steps=400)
    mine = np.array(history.losses, np.float32)
    theirs = np.array(losses, np.float32)
    print(f"{os.cpu_count()} cores; {history.steps} steps of {BATCH} rows")
    print(f"accuracy on {len(truth)} held-out images: {accuracy:.3f}")
    print(
        f"losses against tf.function: {int((mine != theirs).sum())} of {len(mine)} "
        f"differ, by {np.abs(mine - theirs).max():.2g} at most; against eager: "
        f"{int((mine[:400] != np.array(eager_losses, np.float32)).sum())} of 400"
    )
    print(
        f"steps per second: fit {native:,.0f}, beside the clients "
        f"{history.steps / seconds:,.0f}; tf.function {compiled:,.0f}, eager "
        f"{eager:,.0f}: fit / eager {native / eager:.2f}"
    )
    print(f"loop lag, idle:                    {text(idle)}")
    print(
        f"loop lag, {CLIENTS} clients:              {text(alone)}, {alone_rate:,.0f}/s"
    )
    print(f"loop lag, clients and training:    {text(beside)}, {rate:,.0f}/s")


if __name__ == "__main__":
    asyncio.run(main())
