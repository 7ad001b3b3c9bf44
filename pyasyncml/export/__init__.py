"""From live programs to files that `load` serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["jax"]


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
