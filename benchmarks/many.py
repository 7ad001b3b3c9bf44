"""Would a native `infer` of many requests at once pay? `python -m benchmarks.many`

What it could save at most: the conversions and pushes stay (`submit`), and so do the
runs. It would give one future in the place of many, so what goes is what `gather` and
its futures cost beyond that. Beside it `one array`: the same rows as one request, which
`Batching` cuts up and joins again, and which is there already. On the echo, whose runs
cost next to nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict

import numpy as np

import pyasyncml as ml
from pyasyncml.testing import echo

REQUESTS = 256
TURNS = 400


async def measure(batching: ml.Batching | None) -> dict[str, float]:
    """Microseconds a request, medians: each way does all `REQUESTS`."""
    seconds = defaultdict(list)
    clock = time.perf_counter
    async with await echo(batching=batching) as model:
        xs = [np.zeros((1, 16), np.float32) for _ in range(REQUESTS)]
        together = np.zeros((REQUESTS, 16), np.float32)
        for _ in range(TURNS):
            begun = clock()
            futures = [*map(model.infer, xs)]
            submitted = clock()
            await asyncio.gather(*futures)
            seconds["gather"].append(clock() - begun)
            seconds["of that, submit"].append(submitted - begun)
            begun = clock()
            for future in [*map(model.infer, xs)]:
                await future
            seconds["await one after the other"].append(clock() - begun)
            begun = clock()
            await model.infer(together)
            seconds["one array"].append(clock() - begun)
    return {
        way: statistics.median(found) / REQUESTS * 1e6 for way, found in seconds.items()
    }


async def main() -> None:
    for name, batching in (("unbatched", None), ("batched", ml.Batching(64))):
        for way, microseconds in (await measure(batching)).items():
            print(f"{name:10} {way:26} {microseconds:5.2f} µs/request")


if __name__ == "__main__":
    asyncio.run(main())
