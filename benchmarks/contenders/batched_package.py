"""The package batched (mixedbread): an `asyncio.Queue` before `asyncio.to_thread`.

A batch that isn't full waits up to `timeout_ms`, 5 by default;
1 here, so that the others' batches are not larger for want of waiting alone.
"""

from __future__ import annotations

from typing import Any

from . import Contender, Workload, nothing_to_close


async def start(workload: Workload) -> Contender:
    from batched import aio  # type: ignore[import-untyped]

    batch = workload.batch
    assert batch is not None

    def process(inputs: list[Any]) -> Any:
        with workload.scope():
            return batch.split(workload.inner(batch.join(inputs)))

    infer = aio.dynamically(process, batch_size=batch.most, timeout_ms=1.0)
    return Contender("batched", infer, nothing_to_close)
