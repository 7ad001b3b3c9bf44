"""`loop.run_in_executor`: as many threads as instances, or the default pool."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import Contender, Workload, nothing_to_close


async def start(workload: Workload) -> Contender:
    loop = asyncio.get_running_loop()
    run = workload.run
    pool = ThreadPoolExecutor(workload.instances)

    def infer(x: Any) -> asyncio.Future[Any]:
        return loop.run_in_executor(pool, run, x)

    async def close() -> None:
        pool.shutdown()

    return Contender("executor", infer, close)


async def start_default(workload: Workload) -> Contender:
    loop = asyncio.get_running_loop()
    run = workload.run

    def infer(x: Any) -> asyncio.Future[Any]:
        return loop.run_in_executor(None, run, x)

    return Contender("executor (default)", infer, nothing_to_close)
