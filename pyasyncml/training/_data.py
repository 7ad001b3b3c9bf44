"""Where batches come from: arrays in memory, or anything that can be iterated."""

from __future__ import annotations

import asyncio
import contextlib
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
from ._run import settled


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


class Puller:
    """Batches asked for one at a time. The source's code runs in one task from its
    beginning to its end, beside whoever asks, who can see to other things meanwhile."""

    def __init__(self, source: Batches) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._answer: asyncio.Future[Any] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(source))

    def ask(self) -> asyncio.Future[Any]:
        """The next batch, or None; what the source raises."""
        self._answer = self._loop.create_future()
        self._asked.set()
        return self._answer

    async def _run(self, source: Batches) -> None:
        try:
            async with contextlib.aclosing(batches(source)) as items:
                while True:
                    await self._asked.wait()
                    self._asked.clear()
                    item = await anext(items, None)
                    if self._answer.done():
                        return  # nobody waits for it any more
                    self._answer.set_result(item)
        except Exception as error:
            if self._answer.done():
                raise  # of its end
            self._answer.set_exception(error)
        except asyncio.CancelledError:
            self._answer.cancel()
            raise

    async def close(self) -> None:
        """Ends the source, wherever it is. Raises what it raises at that."""
        self._answer.cancel()
        self._task.cancel()
        cancelled = await settled(self._task)
        if not self._task.cancelled():
            self._task.result()
        if cancelled is not None:
            raise cancelled


def is_one_pass(source: Batches) -> bool:
    """Whether it can be iterated once only, as generators can."""
    return isinstance(source, (Iterator, AsyncIterator))
