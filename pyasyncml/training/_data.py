"""Where batches come from: arrays in memory, or anything that can be iterated."""

from __future__ import annotations

import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from typing import Any

from .._call import call
from ..errors import InputError


@dataclass(frozen=True)
class Arrays:
    """Arrays of one length; a batch is as many rows of each."""

    arrays: tuple[Any, ...]
    rows: int


Batches = Iterable[Any] | AsyncIterable[Any]


def read(data: Any, name: str = "data") -> Arrays | Batches:
    """What the argument is. A tuple is arrays, and so is an array by itself or a torch
    TensorDataset; everything else that can be iterated gives batches.

    Raises `InputError` for arrays that don't go together, `TypeError` for the rest.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if _is_array(data):
        data = (data,)
    if isinstance(data, tuple):
        return _arrays(data, name)
    if isinstance(data, AsyncIterable):
        return data
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return data
    raise TypeError(
        f"{name}: expected arrays (a tuple of them), a DataLoader or an iterable of "
        f"batches, got {type(data).__name__}"
    )


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and (
        hasattr(item, "__dlpack__") or hasattr(item, "__array__")
    )


def _arrays(items: tuple[Any, ...], name: str) -> Arrays:
    if not items:
        raise InputError(f"{name}: expected an array or more, got an empty tuple")
    arrays = []
    for i, item in enumerate(items):
        if not _is_array(item):
            raise InputError(
                f"{name}[{i}]: expected an array, got {type(item).__name__}; batches "
                "come as a list or another iterable"
            )
        if len(item.shape) == 0:
            raise InputError(f"{name}[{i}]: expected rows along axis 0, got a scalar")
        arrays.append(_contiguous(item))
    rows = [int(array.shape[0]) for array in arrays]
    if len(set(rows)) > 1:
        raise InputError(f"{name}: the arrays have different lengths: {rows}")
    if rows[0] == 0:
        raise InputError(f"{name}: is empty, there are no rows")
    return Arrays(tuple(arrays), rows[0])


def _contiguous(array: Any) -> Any:
    if hasattr(array, "contiguous"):  # torch's: itself where it is
        return array.detach().contiguous()
    import numpy as np

    return np.ascontiguousarray(array)


_END = object()


async def batches(
    source: Batches, name: str = "data"
) -> AsyncGenerator[tuple[Any, ...], None]:
    """One pass over the source. A source that isn't async is pulled on a worker, one
    item ahead, so that the loop never waits for it.

    Raises what the source raises, and `InputError` for an item that is no batch.
    """
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield _batch(item, name)
        return
    iterator: Iterator[Any] = await call(iter, source)
    coming = call(next, iterator, _END)
    try:
        while (item := await coming) is not _END:
            coming = call(next, iterator, _END)
            yield _batch(item, name)
    finally:
        coming.cancel()


def _batch(item: Any, name: str) -> tuple[Any, ...]:
    if isinstance(item, (tuple, list)):
        if not item:
            raise InputError(f"{name}: a batch is empty")
        return tuple(item)
    if isinstance(item, dict):
        raise InputError(
            f"{name}: a batch is a dict; expected a tuple in the order of the module's "
            "inputs, the targets last"
        )
    return (item,)


def is_one_pass(source: Batches) -> bool:
    """Whether it can be iterated once only, as generators can."""
    return isinstance(source, (Iterator, AsyncIterator))
