"""`await model.infer(x)`: one by one, and in batches."""

from __future__ import annotations

from typing import Any

from . import Contender, Workload


async def start(workload: Workload) -> Contender:
    return _contender("native", await workload.native())


async def start_batched(workload: Workload, **options: Any) -> Contender:
    assert workload.batch is not None
    model = await workload.native(batching=workload.batch.native, **options)
    return _contender("native, batched", model)


def _contender(name: str, model: Any) -> Contender:
    async def close() -> None:
        await model.close()

    return Contender(name, model.infer, close, model=model)
