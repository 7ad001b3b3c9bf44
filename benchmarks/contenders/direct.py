"""The blocking call on the loop's own thread: no added cost, and no other task runs."""

from __future__ import annotations

from . import Contender, Workload, nothing_to_close


async def start(workload: Workload) -> Contender:
    return Contender("direct", workload.run, nothing_to_close, blocking=True)
