"""From live programs to files that `load` serves.

>>> from pyasyncml import export  # doctest: +SKIP
>>> export.torch(module, (x,), "model.pt2")  # doctest: +SKIP
>>> export.tensorflow(model, "model", inputs=(x, y), loss=loss, optimizer="adam")
... # doctest: +SKIP
>>> export.jax(fn, (x,), "fn.xla", batch_sizes=(1, 8, 32))  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["jax", "tensorflow", "torch"]


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
    from ._write import write_with_checksum

    args = inputs if isinstance(inputs, tuple) else (inputs,)
    program, names = export_module(module, args, dynamic, entry=entry)
    if compile:
        from ._compiled import compile_program

        write_with_checksum(
            os.fspath(path), lambda made: compile_program(program, names, made)
        )
        return
    from ._archive import save_program
    from ._program import serve

    serve(program, entry or "forward", names)  # what can't be served isn't written
    write_with_checksum(
        os.fspath(path), lambda made: save_program(program, names, made)
    )


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

    `inputs`: examples or `tf.TensorSpec`s, one or a tuple, or dicts of them by name
    where the model takes a dict; of an example axis 0 may vary, a spec is taken as it
    is. With a loss the last one is the target, and the others are the model's inputs.
    `loss`: a Keras loss, the name of one, or any function of (target, output).
    `optimizer`: a Keras optimizer or the name of one; its state is in the SavedModel
    from the start.

    The signatures: `predict` and `serving_default`, the model as it infers;
    `train_step`, one step on a batch, which gives the `loss` (with the model's own,
    as of regularizers); and `weights`, the model's variables by their names. A spec's
    name or a dict's key is the input's; examples are `x` (or `x0`, `x1`, …) and `y`.

    The folder appears whole or not at all, and ``path + ".sha256"`` with it, which
    `load` verifies; a SavedModel that was there is replaced. The variables are copied
    as they are; the model itself isn't changed. Seconds of Python: on a loop use
    ``await call(export.tensorflow, …)``.

    Raises `LoadError` where TensorFlow is missing or the model can't be exported,
    `TypeError` and `ValueError` for wrong arguments, and `OSError`.
    """
    from ._saved_model import export_saved_model

    export_saved_model(model, os.fspath(path), inputs, loss, optimizer)


def jax(
    fn: Callable[..., Any],
    inputs: Any,
    path: str | os.PathLike[str],
    batch_sizes: Sequence[int] | None = (1, 8, 32),
    *,
    weights: Any = None,
    state: Any = None,
    entry: str | None = None,
    platform: str | None = None,
) -> None:
    """Write a JAX function to a bundle that `load` serves on XLA, with its checksum.

    `fn` takes arrays, or tuples, lists and dicts (with str keys) of them, and returns
    such; namedtuples and other containers that JAX knows come back as tuples. `inputs`:
    example inputs, one or a tuple; only their shapes and dtypes count.

    `batch_sizes`: axis 0 of every input that has one, and of every output, is the
    batch. XLA has no dynamic shapes, so a program is compiled for each of these sizes;
    a run takes any number of rows and is padded with zeros to the next size, so that
    the rows of `fn` must not depend on each other. None: shapes are fixed, as in
    `inputs`.

    `weights`: ``fn(weights, *inputs)``; stored once for all batch sizes and kept on the
    device. Arrays that `fn` closes over are in each of the programs instead.
    `state`: ``fn(state, *inputs)`` gives ``(new state, outputs)``; this one is the
    first, and it stays on the device, given to each run in place (donated). With both,
    ``fn(weights, state, *inputs)``. With `state`, `batch_sizes` must be None: padding
    would change it.

    `entry`: the function's name in the bundle; "forward", or "train_step" where there
    is a `state`. `platform`: "cpu", "cuda", "tpu", …; JAX's default.

    The file appears whole or not at all, and ``path + ".sha256"`` with it, which `load`
    verifies. Takes seconds and is Python: on a loop use ``await call(export.jax, …)``.

    Raises `LoadError` where JAX is missing or the function can't be exported,
    `TypeError` and `ValueError` for inputs that can't be served, and `OSError`.
    """
    from ._jax import export_function

    export_function(
        fn,
        inputs if isinstance(inputs, tuple) else (inputs,),
        os.fspath(path),
        batch_sizes,
        weights,
        state,
        entry or ("forward" if state is None else "train_step"),
        platform,
    )
