"""Three times as many requests as can be served, each with a deadline.

The capacity is measured first, by a closed loop on the same model in the same round.
Then Poisson arrivals come at three times that rate, whatever becomes of the earlier
ones, and every answer counts that is there within the deadline of its request's
*intended* arrival: goodput. Everyone is counted in the same way by the client, whether
the contender knows of the deadline or not.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyasyncml
from pyasyncml import Batching, Queue

from . import echo, load, models
from .contenders import Batch, Contender, Starter, Workload, executor, greedy, native
from .load import Meter, Run

TIMES_CAPACITY = 3
DEADLINE = 0.05  # seconds
BOUND = 256  # rows in a native queue that rejects: 4 to 8 full batches
ECHO, MLP = "echo of 2 ms + 0.1 ms a row", "MLP, 16 rows"
ROWS = 16
CLOSED = 256  # in flight, for the capacity
LOOK_EVERY = 0.02  # seconds


class Watch:
    """Looks at the process's memory and the model's queue while a load runs."""

    def __init__(self, model: pyasyncml.Model | None) -> None:
        self._model = model
        self._seen = array("q")
        self._waiting = 0
        self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while True:
            self._seen.append(_resident_bytes())
            if self._model is not None:
                self._waiting = max(self._waiting, self._model.stats().waiting)
            await asyncio.sleep(LOOK_EVERY)

    async def stop(self, run: Run) -> Run:
        self._task.cancel()
        await asyncio.wait([self._task])
        quarter = self._seen[len(self._seen) // 4]
        growth = max(self._seen[len(self._seen) // 4 :]) / quarter
        waiting = None if self._model is None else self._waiting
        return replace(run, growth=growth, waiting=waiting)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@dataclass
class _Counts:
    answered: int = 0
    in_time: int = 0
    refused: int = 0


async def overload(
    contender: Contender,
    x: Any,
    rate: float,
    seconds: float,
    seed: int,
) -> Run:
    """`contender.infer` takes the input and the seconds that are left for it."""
    clock, infer = time.monotonic, contender.infer
    offsets = load.poisson(rate, seconds, seed)
    # All of it now, or what is seen to grow is the client's own notes.
    latencies, counts = array("d", bytes(8 * len(offsets))), _Counts()

    async def client(intended: float) -> None:
        try:
            await infer(x, max(0.0, intended + DEADLINE - clock()))
        except (pyasyncml.Error, TimeoutError, asyncio.TimeoutError):
            counts.refused += 1
            return
        latency = clock() - intended
        latencies[counts.answered] = latency
        counts.answered += 1
        if latency <= DEADLINE:
            counts.in_time += 1

    loop = asyncio.get_running_loop()
    meter, watch = Meter(loop), Watch(contender.model)
    arrivals = load.Arrivals(loop, offsets, client)
    await arrivals.done
    unfinished = set(arrivals.tasks)
    if unfinished:
        _, unfinished = await asyncio.wait(unfinished, timeout=2 * DEADLINE)
    answered = latencies[: counts.answered]
    run = await watch.stop(meter.stop(answered, len(unfinished)))
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    return replace(run, goodput=counts.in_time / seconds, refused=counts.refused)


async def native_batched(workload: Workload) -> Contender:
    return await native.start_batched(workload)


def native_with_deadlines(queue: Queue) -> Starter:
    async def start(workload: Workload) -> Contender:
        contender = await native.start_batched(workload, queue=queue)
        infer = contender.infer
        return replace(contender, infer=lambda x, left: infer(x, timeout=left))

    return start


def fifo(start: Starter) -> Starter:
    """First come first served, whatever the deadline."""

    async def started(workload: Workload) -> Contender:
        contender = await start(workload)
        infer = contender.infer
        return replace(contender, infer=lambda x, _: infer(x))

    return started


async def executor_with_wait_for(workload: Workload) -> Contender:
    """asyncio's own way: what isn't there in time is cancelled."""
    contender = await executor.start(workload)
    infer = contender.infer

    def infer_within(x: Any, left: float) -> Any:
        return asyncio.wait_for(infer(x), left)

    return replace(contender, infer=infer_within)


CONTENDERS: dict[str, Starter] = {
    "native, deadlines": native_with_deadlines(Queue()),
    "native, deadlines, reject": native_with_deadlines(
        Queue(max_rows=BOUND, when_full="reject")
    ),
    "native, FIFO": fifo(native_batched),
    "greedy, FIFO": fifo(greedy.start),
    "executor, FIFO": fifo(executor.start),
    "executor, wait_for": executor_with_wait_for,
}


async def waiting_echo() -> Workload:
    """A run of 2 ms and 0.1 ms a row, up to 32 rows, which takes no processor."""
    import numpy as np

    def split(output: Any) -> list[Any]:
        return [output[i : i + 1] for i in range(len(output))]

    batch = Batch(Batching(max_rows=32), most=32, join=np.concatenate, split=split)
    x = np.zeros((1, echo.ELEMENTS), np.float32)
    workload = await echo.workload(1, 0.002, x, delay_per_row=0.0001)
    return replace(workload, name=ECHO, batch=batch)


def mlp(model: models.Model) -> Workload:
    """16 rows a request: with one, three times the capacity is more than the client
    can send."""
    import torch

    workload = models.workload(model, instances=1)
    batch = Batch(
        native=Batching(max_rows=64),
        most=64 // ROWS,
        join=torch.cat,
        split=lambda output: output.split(ROWS),
    )
    x = workload.x.repeat(ROWS, 1)
    return replace(workload, name=MLP, x=x, batch=batch)
