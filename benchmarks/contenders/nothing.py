"""Nothing at all, awaited for one turn of the loop: what client and task cost alone.

No contender that lets other tasks run can be faster than this.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from . import Contender, Workload, nothing_to_close


class Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def start(_: Workload) -> Contender:
    def infer(_: Any) -> Turn:
        return Turn()

    return Contender("nothing", infer, nothing_to_close)
