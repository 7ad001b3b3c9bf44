"""From live programs to files that `load` serves.

>>> from pyasyncml import export  # doctest: +SKIP
>>> export.tensorflow(model, "model", inputs=(x, y), loss=loss, optimizer="adam")
... # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["tensorflow"]


def tensorflow(
    model: Any,
    path: str | os.PathLike[str],
    *,
    inputs: Any,
    loss: Any = None,
    optimizer: Any = None,
) -> None:
    """Write a Keras 3 model or a `tf.Module` to a SavedModel that `load` serves, and
    that trains without Python where a loss and an optimizer are given.

    `inputs`: examples or `tf.TensorSpec`s, one or a tuple; of an example axis 0 may
    vary, a spec is taken as it is. With a loss the last one is the target, and the
    others are the model's inputs. `loss`: a Keras loss, the name of one, or any
    function of (target, output). `optimizer`: a Keras optimizer or the name of one; its
    state is in the SavedModel from the start.

    The signatures: `predict` and `serving_default`, the model as it infers;
    `train_step`, one step on a batch, which gives the `loss` (with the model's own,
    as of regularizers); and `weights`, the model's variables by their names. A spec's
    name is the input's; examples are `x` (or `x0`, `x1`, …) and `y`.

    The folder appears whole or not at all, and ``path + ".sha256"`` with it, which
    `load` verifies; a SavedModel that was there is replaced. The variables are copied
    as they are; the model itself isn't changed. Seconds of Python: on a loop use
    ``await call(export.tensorflow, …)``.

    Raises `LoadError` where TensorFlow is missing or the model can't be exported,
    `TypeError` and `ValueError` for wrong arguments, and `OSError`.
    """
    from ._saved_model import export_saved_model

    export_saved_model(model, os.fspath(path), inputs, loss, optimizer)
