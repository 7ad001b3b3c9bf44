"""From live programs to files that `load` serves.

>>> from pyasyncml import export  # doctest: +SKIP
>>> export.torch(module, (x,), "model.pt2")  # doctest: +SKIP
>>> export.tensorflow(model, "model", inputs=x)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["tensorflow", "torch"]


def torch(
    module: Any,
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    dynamic: Any = None,
    entry: str | None = None,
    compile: bool = False,  # noqa: A002
) -> None:
    """Write a `torch.nn.Module` to a `.pt2` that `load` serves, with its checksum.

    The module is exported in the mode it is in (call ``module.eval()`` first), from
    the example `inputs`, one or a tuple; sizes vary as in `load`, `dynamic` names
    further axes. `entry`: another method than forward. The file is what
    `torch.export.save` writes, so that torch reads it too; it appears whole or not at
    all, and ``path + ".sha256"`` with it, which `load` verifies.

    `compile`: with code compiled by AOTInductor for this machine, which runs faster
    still: it needs a C++ compiler and some seconds, here only.

    Takes seconds and is Python: on a loop use ``await call(export.torch, …)``. Raises
    `LoadError` for a module that can't be exported, naming the line, and `OSError`.
    """
    from ._module import export_module
    from ._write import write_atomically

    args = inputs if isinstance(inputs, tuple) else (inputs,)
    program, names = export_module(module, args, dynamic, entry=entry)
    if compile:
        from ._compiled import compile_program

        write_atomically(
            os.fspath(path), lambda made: compile_program(program, names, made)
        )
        return
    from ._archive import save_program
    from ._program import serve

    serve(program, entry or "forward", names)  # what can't be served isn't written
    write_atomically(os.fspath(path), lambda made: save_program(program, names, made))


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
