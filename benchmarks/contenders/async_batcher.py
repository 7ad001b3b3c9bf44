"""The package async-batcher: an `asyncio.Queue` before an executor of one thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import Batch, Contender, Workload


async def start(workload: Workload) -> Contender:
    from async_batcher.batcher import AsyncBatcher  # type: ignore[import-untyped]

    assert workload.batch is not None
    batch: Batch = workload.batch
    pool = ThreadPoolExecutor(1)

    class Batcher(AsyncBatcher[Any, Any]):  # type: ignore[misc]
        def process_batch(self, batch_of: list[Any]) -> Any:
            with workload.scope():
                return batch.split(workload.inner(batch.join(batch_of)))

    # Greedy, as the others: nobody waits for a batch to fill.
    batcher = Batcher(max_batch_size=batch.most, max_queue_time=0.0, executor=pool)

    async def close() -> None:
        await batcher.stop(force=True)
        await asyncio.sleep(0)
        pool.shutdown()

    return Contender("async-batcher", batcher.process, close)
