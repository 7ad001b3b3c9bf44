"""Writes the SavedModels that the tests load, and what TensorFlow itself makes of them.

`folder()` gives the folder with all of them. Making them takes TensorFlow's Python half
some seconds and a gigabyte of memory, so a process of its own does it, once for all
runs of the tests with the same versions of this file and TensorFlow.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Sanitized tests run in a copy of the sources, and take what the original's made.
BUILDS = Path(os.environ.get("PYASYNCML_TEST_BUILDS", ROOT / "build")) / "saved-models"
STEPS = 140
ROWS = 32  # of a step

#: Every type that goes in and comes out, as TensorFlow and numpy call it.
DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e5m2", "float8_e4m3fn"),
)


def require_tensorflow() -> None:
    """Skips what needs it where it isn't there. Nothing is imported."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed", allow_module_level=True)


def versions() -> list[str]:
    """Of what makes the models."""
    found = []
    for name in ("tensorflow", "tensorflow-cpu", "keras", "numpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def folder() -> Path:
    """The folder with the models, made where it isn't there."""
    from pyasyncml.export import _saved_model

    key = hashlib.sha256(
        Path(__file__).read_bytes()
        + Path(_saved_model.__file__).read_bytes()
        + repr(versions()).encode()
    )
    BUILDS.mkdir(parents=True, exist_ok=True)
    made = BUILDS / key.hexdigest()[:16]
    with open(BUILDS / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            with tempfile.TemporaryDirectory(dir=BUILDS) as temporary:
                new = Path(temporary, "models")
                _in_a_process("all", new)
                os.replace(new, made)
    return made


def _in_a_process(*arguments: Any) -> None:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def nets(folder: Path, digits: dict[str, list[Any]], width: int) -> None:
    """The net of pyasyncml.demo.digits, by name with some weights (of torch's layouts),
    and "running" (see backend_nets.py)."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, weights in digits.items():
            np.savez(Path(temporary, f"{name}.npz"), *weights)
        _in_a_process("nets", folder, temporary, width)


def batches() -> tuple[Any, Any]:
    """Rows of digits-like data and their labels, for STEPS steps."""
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * ROWS, 64)).astype(np.float32)
    return x, (np.abs(x[:, :10]).argmax(axis=1)).astype(np.int64)


# --- in the process of its own ---


def write_all(root: Path) -> None:
    import tensorflow as tf

    root.mkdir()
    write_plain(tf, root)
    write_text(tf, root)
    write_state(tf, root)
    write_tf1(tf, root)
    write_keras(tf, root)
    write_training(tf, root)


def save(module: Any, path: Path, **signatures: Any) -> None:
    """With the functions as attributes, which keeps the order of their arguments; but
    for those whose name begins with "by_name"."""
    import tensorflow as tf

    for name, function in signatures.items():
        if not name.startswith("by_name"):
            setattr(module, f"function_{name}", function)
    tf.saved_model.save(module, str(path), signatures=signatures)


def signature(tf: Any, function: Any, *specs: Any, **options: Any) -> Any:
    return tf.function(function, autograph=False, **options).get_concrete_function(
        *specs
    )


def write_plain(tf: Any, root: Path) -> None:
    """Types, several inputs and outputs, shapes of any rank, what fails."""
    spec = tf.TensorSpec
    module = tf.Module()
    save(
        module,
        root / "dtypes",
        **{
            name: signature(
                tf,
                # "same" is the input's own memory.
                lambda x: {"same": tf.identity(x), "twice": tf.stack([x, x])},
                spec(None, getattr(tf.dtypes, name, None) or name, "x"),
            )
            for name in DTYPES
        },
    )
    twice = signature(tf, lambda x: {"y": 2 * x}, spec([None, 4], tf.float32, "x"))
    save(tf.Module(), root / "twice", serving_default=twice)
    module = tf.Module()
    module.w = tf.Variable(tf.reshape(tf.range(12.0), [4, 3]))

    def positive(x: Any) -> Any:
        tf.debugging.assert_positive(x, "not positive")
        return {"y": x}

    four = spec([None, 4], tf.float32, "zeta"), spec([None, 4], tf.float32, "alpha")
    save(
        module,
        root / "several",
        serving_default=signature(
            tf, lambda zeta, alpha: {"b": zeta - alpha, "a": zeta @ module.w}, *four
        ),
        scale=signature(
            tf,
            lambda x, by: {"y": x * by},
            spec([None, 4], tf.float32, "x"),
            spec([], tf.float32, "by"),
        ),
        count=signature(
            tf,
            lambda n, flag: {"y": tf.where(flag, n, -n)},
            spec([], tf.int8, "n"),
            spec([], tf.bool, "flag"),
        ),
        by_name=signature(
            tf,
            lambda b, a: {"y": b - a},
            spec([], tf.float32, "b"),
            spec([], tf.float32, "a"),
        ),
        half=signature(tf, lambda x: {"y": x}, spec([], tf.float16, "x")),
        brain=signature(tf, lambda x: {"y": x}, spec([], tf.bfloat16, "x")),
        variable=signature(tf, lambda: {"y": module.w.read_value()}),
        constant=signature(tf, lambda: {"y": tf.constant([1.0, 2.0, 3.0])}),
        reshaped=signature(
            tf, lambda x: {"y": tf.reshape(x, [-1])}, spec(None, tf.float32, "x")
        ),
        positive=signature(tf, positive, spec([None], tf.float32, "x")),
        xla=signature(
            tf,
            lambda x: {"y": tf.nn.softmax(x * 2)},
            spec([None, 4], tf.float32, "x"),
            jit_compile=True,
        ),
        python=signature(
            tf,
            lambda x: {"y": tf.py_function(lambda v: v, [x], tf.float32)},
            spec([None], tf.float32, "x"),
        ),
        # As long a run as is asked for.
        loop=signature(
            tf,
            lambda x, n: {
                "y": tf.while_loop(
                    lambda i, v: i < n,
                    lambda i, v: (i + 1, tf.tanh(v @ tf.transpose(v) @ v)),
                    (0, x),
                )[1]
            },
            spec([None, 64], tf.float32, "x"),
            spec([], tf.int32, "n"),
        ),
        # x is read when so many rounds are over.
        late=signature(
            tf,
            lambda x, n: {
                "y": x
                + tf.while_loop(
                    lambda i, v: i < n, lambda i, v: (i + 1, tf.tanh(v)), (0, 0.0)
                )[1]
            },
            spec([None], tf.float32, "x"),
            spec([], tf.int32, "n"),
        ),
        total=signature(
            tf, lambda x: {"y": tf.reduce_sum(x)}, spec([None], tf.float32, "x")
        ),
        grown=signature(
            tf,
            lambda x: {"y": tf.broadcast_to(x, [2**25, 1])},
            spec([1], tf.float32, "x"),
        ),
        # The mean over what the mask has, for padding.
        masked=signature(
            tf,
            lambda x, mask: {"y": tf.reduce_sum(x * mask, 1) / tf.reduce_sum(mask, 1)},
            spec([None, None], tf.float32, "x"),
            spec([None, None], tf.float32, "mask"),
        ),
    )


def write_text(tf: Any, root: Path) -> None:
    spec = tf.TensorSpec
    vocabulary = root / "words.txt"
    vocabulary.write_text("alpha\nbeta\ngamma\n", encoding="utf-8")
    module = tf.Module()
    module.table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=1,
    )
    save(
        module,
        root / "text",
        lookup=signature(
            tf,
            lambda words: {"ids": module.table.lookup(words)},
            spec(None, tf.string, "words"),
        ),
        upper=signature(
            tf,
            lambda text: {
                "upper": tf.strings.upper(text, encoding="utf-8"),
                "length": tf.strings.length(text),
                "same": tf.identity(text),
            },
            spec(None, tf.string, "text"),
        ),
        number=signature(
            tf,
            lambda text: {"y": tf.strings.to_number(text)},
            spec([], tf.string, "text"),
        ),
        joined=signature(
            tf,
            lambda text: {"y": tf.strings.reduce_join(text, separator="-")},
            spec([None], tf.string, "text"),
        ),
        exclaimed=signature(
            tf, lambda text: {"y": text + "!"}, spec([], tf.string, "text")
        ),
    )
    vocabulary.unlink()  # it is among the assets


def write_state(tf: Any, root: Path) -> None:
    """Signatures that leave something behind."""
    spec = tf.TensorSpec
    module = tf.Module()
    module.count = tf.Variable(0, dtype=tf.int64)
    module.kept = tf.Variable([0.0], shape=[None])

    def keep(x: Any) -> Any:
        module.kept.assign(x)
        return {"sum": tf.reduce_sum(x)}

    save(
        module,
        root / "state",
        count=signature(
            tf,
            lambda by: {"count": module.count.assign_add(by)},
            spec([], tf.int64, "by"),
        ),
        keep=signature(tf, keep, spec([None], tf.float32, "x")),
        kept=signature(tf, lambda: {"x": module.kept.read_value()}),
        # A recurrent step: what goes out again comes in.
        step=signature(
            tf,
            lambda x, state: {"y": state * 10 + x, "state": state + x},
            spec([None, 2], tf.float32, "x"),
            spec([None, 2], tf.float32, "state"),
        ),
    )


def write_tf1(tf: Any, root: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="pixels")
        w = v1.get_variable(
            "w", [3, 2], initializer=v1.ones_initializer(), use_resource=False
        )
        y = tf.identity(x @ w, "scores")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(root / "tf1"), {"in": x}, {"out": y})


def write_keras(tf: Any, root: Path) -> None:
    import keras

    keras.utils.set_random_seed(3)
    pixels, extra = keras.Input((4,), name="pixels"), keras.Input((2,), name="extra")
    joined = keras.layers.Concatenate()([pixels, extra])
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Dropout(0.5)(joined))
    model = keras.Model([pixels, extra], keras.layers.Dense(3)(hidden))
    model.export(str(root / "keras"), verbose=False)
    model.save(root / "keras.keras")
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    e = np.linspace(1, 2, 10, dtype=np.float32).reshape(5, 2)
    np.savez(root / "keras.npz", pixels=x, extra=e, scores=model([x, e]).numpy())


def classifier(keras: Any) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, "relu", kernel_regularizer="l2"),
            keras.layers.Dense(10),
        ]
    )


def write_training(tf: Any, root: Path) -> None:
    """Programs with a training step, and what eager TensorFlow makes of the same."""
    import keras

    from pyasyncml import export

    x, y = batches()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = classifier(keras)
    export.tensorflow(
        model,
        root / "training",
        inputs=(x[:ROWS], y[:ROWS]),
        loss=loss,
        optimizer=keras.optimizers.Adam(0.01),
    )
    optimizer = keras.optimizers.Adam(0.01)
    losses = []
    for step in range(STEPS):
        rows = slice(step * ROWS, (step + 1) * ROWS)
        with tf.GradientTape() as tape:
            value = loss(y[rows], model(x[rows], training=True)) + tf.add_n(
                model.losses
            )
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )
        losses.append(value.numpy())
    np.savez(
        root / "training.npz",
        losses=np.array(losses),
        scores=model(x[:ROWS], training=False).numpy(),
        **{v.path: v.numpy() for v in model.variables},
    )

    class Line(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.slope = tf.Variable([[1.0], [1.0]], name="slope")
            self.offset = tf.Variable([0.0], name="offset")

        def __call__(self, x: Any) -> Any:
            return x @ self.slope + self.offset

    export.tensorflow(
        Line(),
        root / "line",
        inputs=(
            tf.TensorSpec([None, 2], tf.float32, "points"),
            tf.TensorSpec([None, 1], tf.float32, "heights"),
        ),
        loss=lambda target, output: (target - output) ** 2,
        optimizer="sgd",
    )


def write_nets(folder: Path, saved: Path, width: int) -> None:
    import tensorflow as tf

    for path in saved.iterdir():
        write_digits(tf, folder / path.stem, path)

    def running(x: Any, mask: Any, state: Any) -> Any:
        y = state + tf.reduce_sum(x * mask[..., None], 1)
        return {"y": y, "state": tf.tanh(y)}

    specs = (
        tf.TensorSpec([None, None, width], tf.float32, "x"),
        tf.TensorSpec([None, None], tf.float32, "mask"),
        tf.TensorSpec([None, width], tf.float32, "state"),
    )
    served = {"serving_default": signature(tf, running, *specs)}
    save(tf.Module(), folder / "running", **served)


def write_digits(tf: Any, path: Path, saved: Path) -> None:
    w1, b1, w2, b2, w3, b3 = np.load(saved).values()
    module = tf.Module()
    module.weights = [
        tf.Variable(w)
        for w in (
            *(w1.transpose(2, 3, 1, 0), b1, w2.transpose(2, 3, 1, 0), b2),
            # After the pooling: height, width, channel; torch has the channel first.
            *(w3.reshape(10, 32, 4, 4).transpose(2, 3, 1, 0).reshape(512, 10), b3),
        )
    ]

    def scores(x: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = module.weights
        x = tf.transpose(x, [0, 2, 3, 1])
        x = tf.nn.relu(tf.nn.conv2d(x, w1, 1, "SAME") + b1)
        x = tf.nn.relu(tf.nn.conv2d(x, w2, 1, "SAME") + b2)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return {"scores": tf.reshape(x, [-1, 512]) @ w3 + b3}

    images = tf.TensorSpec([None, 1, 8, 8], tf.float32, "x")
    save(module, path, serving_default=signature(tf, scores, images))


if __name__ == "__main__":
    if sys.argv[1] == "nets":
        write_nets(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        write_all(Path(sys.argv[2]))
