"""Exports Keras models of several kinds to the folder given, and trains each eagerly:
for each NAME a SavedModel, and NAME.npz with the batches, the losses and the scores."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from pyasyncml import export

STEPS, ROWS, WIDTH = 12, 16, 6
ROOT = Path(sys.argv[1])


class Unbuilt(keras.Model):
    """A subclass that nobody has called, with all that differs in training."""

    def __init__(self):
        super().__init__()
        # A bias would have no gradient but noise, which Adam makes steps of.
        self.hidden = keras.layers.Dense(8, use_bias=False)
        self.normalized = keras.layers.BatchNormalization()
        self.dropped = keras.layers.Dropout(0.5, seed=5)
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        x = self.normalized(self.hidden(x), training=training)
        return self.out(self.dropped(keras.ops.relu(x), training=training))


def of_dicts():
    """A functional model whose inputs are a dict, not in the order of the names."""
    b, a = keras.Input((WIDTH,), name="b"), keras.Input((WIDTH,), name="a")
    return keras.Model({"b": b, "a": a}, keras.layers.Dense(1)(a - 2 * b))


def scheduled():
    return keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5, staircase=True)
    )


def train(model, inputs, y, optimizer):
    """Losses and, in the end, scores of the first batch: TensorFlow, eagerly."""
    loss, losses = keras.losses.MeanSquaredError(), []
    optimizer.build(model.trainable_variables)
    for step in range(STEPS):
        rows = slice(step * ROWS, (step + 1) * ROWS)
        batch = tf.nest.map_structure(lambda x, rows=rows: x[rows], inputs)
        with tf.GradientTape() as tape:
            value = loss(y[rows], model(batch, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )
        losses.append(value.numpy())
    first = tf.nest.map_structure(lambda x: x[:ROWS], inputs)
    return losses, model(first, training=False).numpy()


random = np.random.default_rng(0)
X, Z = (random.normal(size=(STEPS * ROWS, WIDTH)).astype(np.float32) for _ in range(2))
Y = X[:, :1] - Z[:, 1:2]
for name, make, inputs in [
    ("unbuilt", Unbuilt, X),
    ("dicts", of_dicts, {"a": X, "b": Z}),
]:
    keras.utils.set_random_seed(4)
    model = make()
    example = tf.nest.map_structure(lambda x: x[:ROWS], inputs)
    export.tensorflow(
        model,
        ROOT / name,
        inputs=(example, Y[:ROWS]),
        loss=keras.losses.MeanSquaredError(),
        optimizer=scheduled(),
    )
    losses, scores = train(model, inputs, Y, scheduled())
    np.savez(
        ROOT / f"{name}.npz", x=X, z=Z, y=Y, losses=np.array(losses), scores=scores
    )

for wrong in ({}, {5: X}):
    with pytest.raises(TypeError, match="a dict of inputs by name"):
        export.tensorflow(of_dicts(), ROOT / "wrong", inputs=(wrong,))
