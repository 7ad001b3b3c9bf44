"""One native request in flight, in a process with nothing else in it.

Reads "SECONDS PLACEMENT" lines from stdin and answers each with a line of JSON: how
native/pingpong.c is driven, so that the two can take turns. What the workers do while
they wait (PYASYNCML_SPIN) is set for a whole process, hence the process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import threading

from . import echo
from .contenders import native
from .load import closed

ALLOWED = os.sched_getaffinity(0)


def place(placement: str) -> None:
    """Puts the loop's thread on one core and all others on another, or frees them."""
    cores = sorted(ALLOWED)
    for name in os.listdir("/proc/self/task"):
        thread = int(name)
        if placement == "apart":
            core = cores[0] if thread == threading.get_native_id() else cores[1]
            os.sched_setaffinity(thread, {core})
        else:
            os.sched_setaffinity(thread, ALLOWED)


async def main() -> None:
    workload = await echo.workload(instances=1, delay=0.0)
    contender = await native.start(workload)
    await closed(contender, workload.x, 1, 0.1)
    for line in sys.stdin:
        seconds, placement = line.split()
        place(placement)
        run = await closed(contender, workload.x, 1, float(seconds))
        print(json.dumps(dataclasses.asdict(run)), flush=True)
    await contender.close()
    await workload.close()


if __name__ == "__main__":
    asyncio.run(main())
