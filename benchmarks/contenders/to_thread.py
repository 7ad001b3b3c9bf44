"""`await asyncio.to_thread(run, x)`, on the loop's default executor."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from . import Contender, Workload, nothing_to_close


async def start(workload: Workload) -> Contender:
    run = workload.run

    def infer(x: Any) -> Coroutine[Any, Any, Any]:
        return asyncio.to_thread(run, x)

    return Contender("to_thread", infer, nothing_to_close)
