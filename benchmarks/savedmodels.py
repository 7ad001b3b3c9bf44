"""SavedModels: the digits' net, and one addition, against eager TensorFlow.

The net is that of the demo, with weights at random; TensorFlow's own part is the same
module's `tf.function`, called from a thread. It runs the operations of all its callers
on one pool of threads, of one thread an operation here, as pyasyncml's instances have.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from .contenders import Starter, Workload, nothing_to_close

NAME, TINY_NAME = "digits SavedModel", "tiny SavedModel"
SHAPES = {NAME: (1, 1, 8, 8), TINY_NAME: (1, 4)}


def missing() -> list[str]:
    """The packages that aren't there."""
    return [
        name
        for name in ("tensorflow", "numpy")
        if importlib.util.find_spec(name) is None
    ]


def tensorflow() -> Any:
    """The package, quiet and with one thread an operation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    # RuntimeError: it has begun, with what it was told then.
    with contextlib.suppress(RuntimeError):
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    return tensorflow


def write(folder: Path) -> dict[str, Any]:
    """Writes the models into the folder; their tf.functions by name."""
    import numpy as np

    tf = tensorflow()
    chance = np.random.default_rng(0)
    shapes = [(3, 3, 1, 16), (16,), (3, 3, 16, 32), (32,), (512, 10), (10,)]
    weights = [
        tf.Variable(0.1 * chance.standard_normal(shape, np.float32)) for shape in shapes
    ]

    def digits(x: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = weights
        x = tf.transpose(x, [0, 2, 3, 1])
        x = tf.nn.relu(tf.nn.conv2d(x, w1, 1, "SAME") + b1)
        x = tf.nn.relu(tf.nn.conv2d(x, w2, 1, "SAME") + b2)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return tf.reshape(x, [-1, 512]) @ w3 + b3

    functions = {}
    for name, body in ((NAME, digits), (TINY_NAME, lambda x: x + x)):
        shape = [None, *SHAPES[name][1:]]
        function = tf.function(
            body,
            input_signature=[tf.TensorSpec(shape, tf.float32, "x")],
            autograph=False,
        )
        module = tf.Module()
        module.weights = weights if name == NAME else []
        module.function = function
        tf.saved_model.save(
            module, str(folder / name), signatures=function.get_concrete_function()
        )
        functions[name] = function
    return functions


def workload(
    name: str, folder: Path, function: Any, x: Any, instances: int
) -> Workload:
    import pyasyncml

    tf = tensorflow()

    def run(x: Any) -> Any:
        return function(tf.constant(x)).numpy()

    async def native(**options: Any) -> Any:
        return await pyasyncml.load(
            folder / name, instances=instances, threads=1, **options
        )

    return Workload(
        name=name,
        instances=instances,
        x=x,
        run=run,
        inner=run,
        scope=contextlib.nullcontext,
        native=native,
        close=nothing_to_close,
    )


def starters() -> dict[str, Starter]:
    from .contenders import bridge, native, to_thread

    return {
        "native": native.start,
        "bridge": bridge.start,
        "to_thread": to_thread.start,
    }
