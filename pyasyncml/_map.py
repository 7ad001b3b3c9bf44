"""Many requests from one source: what `Model.map` iterates over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from typing import Any

from ._core import Future

Infer = Callable[..., Future[Any]]


def results(
    infer: Infer,
    source: Iterable[Any] | AsyncIterable[Any],
    in_flight: int,
    ordered: bool,
) -> AsyncGenerator[Any, None]:
    """An async iterator over what `infer` gives for each item; see `Model.map`."""
    if not isinstance(in_flight, int) or isinstance(in_flight, bool):
        raise TypeError(f"in_flight: expected an int, got {type(in_flight).__name__}")
    if in_flight < 1:
        raise ValueError(f"in_flight: expected 1 or more, got {in_flight}")
    if isinstance(source, AsyncIterable):
        return _Flow(infer, in_flight, ordered).run_beside(source)
    if isinstance(source, Iterable) or hasattr(type(source), "__getitem__"):
        return _Flow(infer, in_flight, ordered).run(source)
    raise TypeError(
        "source: expected an iterable or an async iterable, "
        f"got {type(source).__name__}"
    )


class _Flow:
    """Requests between a source and whoever iterates. Belongs to one loop."""

    def __init__(self, infer: Infer, in_flight: int, ordered: bool) -> None:
        self._infer = infer
        self._in_flight = in_flight
        self._ordered = ordered
        #: Submitted and not handed out.
        self._outstanding: set[Future[Any]] = set()
        #: Those to be handed out next, in this order: all of them, or the done ones.
        self._next: deque[Future[Any]] = deque()
        self._ended = False  # the source, or by an error
        self._pumping = False
        self._news = asyncio.Event()  # something is next, or it has ended
        self._room = asyncio.Event()  # something was handed out

    # --- what comes in ---

    def _submit(self, item: Any) -> None:
        future = self._infer(*item) if isinstance(item, tuple) else self._infer(item)
        self._outstanding.add(future)
        if self._ordered:
            self._next.append(future)
        else:
            future.add_done_callback(self._done)
        self._news.set()

    def _done(self, future: Future[Any]) -> None:
        self._next.append(future)
        self._news.set()

    def _fail(self, error: Exception) -> None:
        """The error's place is behind what came before it."""
        future: Future[Any] = Future(loop=asyncio.get_running_loop())
        future.set_exception(error)
        self._outstanding.add(future)
        self._next.append(future)

    # --- what goes out ---

    async def _take(self) -> Any:
        """The next result. There is one, or will be."""
        while not self._next:
            self._news.clear()
            await self._news.wait()
        future = self._next.popleft()
        result = await future
        self._outstanding.remove(future)
        return result

    def _cancel(self) -> None:
        for future in self._outstanding:
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody will look at it any more
        self._outstanding.clear()

    def _pull(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                self._submit(item)
                if len(self._outstanding) >= self._in_flight:
                    return
        except Exception as error:
            self._fail(error)
        self._ended = True

    async def run(self, source: Iterable[Any]) -> AsyncGenerator[Any, None]:
        """From an iterable: pulled in the turns in which results are asked for."""
        items = iter(source)
        try:
            while True:
                if not self._ended:
                    self._pull(items)
                if not self._outstanding:
                    return
                yield await self._take()
        finally:
            self._cancel()

    async def _pump(self, items: AsyncIterator[Any]) -> None:
        """Runs beside the iteration. One task pulls and closes the source: it may hold
        what belongs to a task, like `asyncio.timeout`, while it waits for us."""
        self._pumping = True
        try:
            try:
                async for item in items:
                    self._submit(item)
                    while len(self._outstanding) >= self._in_flight:
                        self._room.clear()
                        await self._room.wait()
            finally:
                await _close(items)
        except Exception as error:
            self._fail(error)
        finally:
            self._ended = True
            self._news.set()

    async def run_beside(self, source: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        """From an async iterable: what is ready doesn't wait for it."""
        items = aiter(source)
        pump = asyncio.ensure_future(self._pump(items))
        try:
            while self._outstanding or not self._ended:
                if not self._next:
                    self._news.clear()
                    await self._news.wait()
                    continue
                result = await self._take()
                self._room.set()
                yield result
            await pump
        finally:
            self._cancel()
            pump.cancel()
            await asyncio.wait([pump])
            if not self._pumping:  # it was cancelled before it began
                await _close(items)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
