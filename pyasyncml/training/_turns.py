"""Whose turn it is with what is trained."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


class Turns:
    """One at a time has what is trained, first come, first served.

    A run takes turn after turn, of one step at least, and ends each as soon as it can
    once somebody else waits; it queues for the next behind those who came before. So
    nobody starves, neither a run among many who ask for single steps, nor they.
    """

    def __init__(self) -> None:
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._held: asyncio.Lock | None = None  # by a run
        self._others = 0  # who wait for a turn between a run's, or have one
        #: Goes up where somebody may have changed what a run's next turn goes by.
        self.changes = 0

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a turn between a run's."""
        return self._others > 0

    async def take(self) -> None:
        """For a run. `leave` ends the turn."""
        lock = self._the_lock()
        await lock.acquire()
        self._held = lock

    def leave(self) -> None:
        assert self._held is not None
        self._held.release()
        self._held = None

    @contextlib.asynccontextmanager
    async def between(self, make_way: Callable[[], None]) -> AsyncIterator[None]:
        """A turn inside. `make_way` tells the run that it is wanted."""
        self._others += 1
        try:
            make_way()
            async with self._the_lock():
                yield
        finally:
            self._others -= 1

    def _the_lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        return self._lock[1]
