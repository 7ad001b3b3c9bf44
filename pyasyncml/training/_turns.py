"""Whose turn it is with what is trained."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable


class _Queue:
    """Who has a turn or waits for one, on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lock = asyncio.Lock()
        self.length = 0
        self.others = 0  # of them, who want one between a run's

    def in_use(self) -> bool:
        return self.length > 0 and not self.loop.is_closed()


class Turns:
    """One at a time has what is trained, first come, first served.

    A run takes turn after turn, of one step at least, and ends each as soon as it can
    once somebody else waits; it queues for the next behind those who came before. So
    nobody starves, neither a run among many who ask for single steps, nor they.

    All of them are on one event loop: `take` and `between` raise `RuntimeError` while
    somebody on another has a turn or waits for one. A loop that was closed has nobody.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # which queue it is, and its length
        self._queue: _Queue | None = None
        self._held: _Queue | None = None  # by a run
        #: Goes up where somebody may have changed what a run's next turn goes by.
        self.changes = 0

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a turn between a run's, or has one."""
        return self._queue is not None and self._queue.others > 0

    async def take(self) -> None:
        """For a run. `leave` ends the turn."""
        queue = self._enter()
        try:
            await queue.lock.acquire()
        except BaseException:
            self._exit(queue)
            raise
        self._held = queue

    def leave(self) -> None:
        assert self._held is not None
        queue, self._held = self._held, None
        queue.lock.release()
        self._exit(queue)

    @contextlib.asynccontextmanager
    async def between(self, make_way: Callable[[], None]) -> AsyncIterator[None]:
        """A turn inside. `make_way` tells the run that it is wanted."""
        queue = self._enter()
        queue.others += 1
        try:
            make_way()
            async with queue.lock:
                yield
        finally:
            queue.others -= 1
            self._exit(queue)

    def _enter(self) -> _Queue:
        loop = asyncio.get_running_loop()
        with self._guard:
            queue = self._queue
            if queue is None or queue.loop is not loop:
                if queue is not None and queue.in_use():
                    raise RuntimeError("the trainer is in use on another event loop")
                queue = self._queue = _Queue(loop)
            queue.length += 1
        return queue

    def _exit(self, queue: _Queue) -> None:
        with self._guard:
            queue.length -= 1
