"""A table of learning rates, filled ahead of the steps that use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np

from .._core import Steps
from ._program import Schedule

#: Rows filled in one go: so long the loop has to wait for one, at most.
_CHUNK = 64
#: Rows kept ahead, so that training goes on where the loop is held up.
_AHEAD = 8192
#: Seconds between two looks at how far the steps have come.
_INTERVAL = 0.01


class Table:
    """`rows` for `steps` steps, which run inside `kept_ahead` only."""

    def __init__(self, schedule: Schedule, steps: int, columns: int) -> None:
        self.rows = np.empty((steps, columns), dtype=np.float64)
        self._schedule = schedule
        self._filled = 0

    def renew(self, schedule: Schedule, done: int) -> None:
        """What `schedule` says holds from the row `done` on; no step is under way."""
        if not (
            schedule.constant
            and self._filled > done
            and self._schedule.constant
            and np.array_equal(schedule.take(1)[0], self.rows[done])
        ):
            self._filled = done
        self._schedule = schedule

    def _fill(self, rows: int) -> None:
        end = min(self._filled + rows, len(self.rows))
        self.rows[self._filled : end] = self._schedule.take(end - self._filled)
        self._filled = end

    @contextlib.asynccontextmanager
    async def kept_ahead(self, steps: Steps) -> AsyncIterator[None]:
        """Inside, rows are filled while the steps run."""
        if self._filled <= steps.done:
            self._fill(len(self.rows) if self._schedule.constant else _CHUNK)
        steps.limit(self._filled)
        task = None
        if self._filled < len(self.rows):
            task = asyncio.get_running_loop().create_task(self._keep_ahead(steps))
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result()

    async def _keep_ahead(self, steps: Steps) -> None:
        while self._filled < len(self.rows):
            if self._filled < steps.done + _AHEAD:
                self._fill(_CHUNK)
                steps.limit(self._filled)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(_INTERVAL)
