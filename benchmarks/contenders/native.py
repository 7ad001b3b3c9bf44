"""`await model.infer(x)`."""

from __future__ import annotations

from . import Contender, Workload


async def start(workload: Workload) -> Contender:
    model = await workload.native()

    async def close() -> None:
        await model.close()

    return Contender("native", model.infer, close)
