"""The clients: a closed loop of tasks, and an open loop of Poisson arrivals.

Closed: `in_flight` tasks, each awaiting one request after the other until the time is
over. Time per request is wall time over requests, from the first task's start to the
last task's end.

Open: arrivals come when a seeded Poisson process says so, whether or not earlier ones
are done, and each is a new task, as in a server. Latency counts from the arrival's
*intended* time, so a loop that is late in starting a request is charged for it (no
coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .beat import Beat, Lag
from .contenders import Contender
from .quantiles import quantile
from .timerfd import TimerFd

DRAIN_SECONDS = 1.0  # how long an open loop waits for what has not come back


@dataclass(frozen=True)
class Run:
    """One contender under one load for one round."""

    requests: int
    wall_s: float
    cpu_s: float  # user and system, all threads of the process
    p50_us: float | None  # of the requests; None where they weren't timed one by one
    p99_us: float | None
    lag: Lag | None  # None where there is no loop
    unfinished: int = 0  # open loop: given up after DRAIN_SECONDS
    # With deadlines, under overload (overload.py):
    goodput: float | None = None  # answered in time, a second
    streams: int | None = None  # the most that were kept up with
    growth: float | None = None  # of resident memory, from a quarter in to the end
    waiting: int | None = None  # the most rows that were seen in the model's queue
    refused: int | None = None  # requests that failed: their deadline, or the queue
    # Of a training:
    accuracy: float | None = None  # on held-out data
    differing: int | None = None  # losses that aren't the other loop's, bit for bit

    @property
    def rps(self) -> float:
        return self.requests / self.wall_s

    @property
    def us_per_request(self) -> float:
        return 1e6 * self.wall_s / max(1, self.requests)

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.cpu_s / max(1, self.requests)


class Meter:
    """What is measured round a load: wall, CPU and, with a beat, loop lag."""

    def __init__(self, loop: asyncio.AbstractEventLoop, beat: bool = True) -> None:
        # What warming up made is put out of the collector's sight, or the lag shown
        # is the collector's.
        gc.collect()
        gc.freeze()
        self._beat = Beat(loop) if beat else None
        self._cpu = time.process_time()
        self._wall = time.monotonic()

    def stop(self, latencies: array[float], unfinished: int = 0) -> Run:
        wall = time.monotonic() - self._wall
        cpu = time.process_time() - self._cpu
        lag = self._beat.stop() if self._beat is not None else None
        ordered = sorted(latencies) or [0.0]
        return Run(
            requests=len(latencies),
            wall_s=wall,
            cpu_s=cpu,
            p50_us=1e6 * quantile(ordered, 0.50),
            p99_us=1e6 * quantile(ordered, 0.99),
            lag=lag,
            unfinished=unfinished,
        )


def joined(runs: Sequence[Run]) -> Run:
    """Parts of one round as one run; without times of single requests."""
    return Run(
        sum(run.requests for run in runs),
        sum(run.wall_s for run in runs),
        sum(run.cpu_s for run in runs),
        None,
        None,
        lag=None,
    )


async def idle(seconds: float) -> Run:
    """The beat alone, on a loop with nothing else to do."""
    meter = Meter(asyncio.get_running_loop())
    await asyncio.sleep(seconds)
    return meter.stop(array("d"))


def alone(run: Callable[[Any], Any], x: Any, rows: int, seconds: float) -> Run:
    """The blocking call on a batch of `rows` requests, one after the other."""
    cpu, begin = time.process_time(), time.monotonic()
    runs, now = 0, begin
    while now < begin + seconds:
        run(x)
        runs += 1
        now = time.monotonic()
    return Run(
        runs * rows, now - begin, time.process_time() - cpu, None, None, lag=None
    )


async def closed(
    contender: Contender, x: Any, in_flight: int, seconds: float, beat: bool = True
) -> Run:
    clock = time.monotonic
    latencies = array("d")
    record = latencies.append
    infer = contender.infer

    async def awaiting() -> None:
        before, after = clock(), 0.0
        while after < end:  # once at least: all are in flight together
            await infer(x)
            after = clock()
            record(after - before)
            before = after

    async def blocking() -> None:
        before, after = clock(), 0.0
        while after < end:
            infer(x)
            after = clock()
            record(after - before)
            before = after

    client = blocking if contender.blocking else awaiting
    meter = Meter(asyncio.get_running_loop(), beat)
    end = clock() + seconds
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return meter.stop(latencies)


async def open_loop(
    contender: Contender, x: Any, rate: float, seconds: float, seed: int
) -> Run:
    clock = time.monotonic
    latencies = array("d")
    infer = contender.infer

    async def awaiting(intended: float) -> None:
        await infer(x)
        latencies.append(clock() - intended)

    async def blocking(intended: float) -> None:
        infer(x)
        latencies.append(clock() - intended)

    client = blocking if contender.blocking else awaiting
    loop = asyncio.get_running_loop()
    meter = Meter(loop)
    arrivals = Arrivals(loop, poisson(rate, seconds, seed), client)
    await arrivals.done
    unfinished = set(arrivals.tasks)
    if unfinished:
        _, unfinished = await asyncio.wait(unfinished, timeout=DRAIN_SECONDS)
    run = meter.stop(latencies, len(unfinished))
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    return run


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Offsets in seconds of the arrivals of a Poisson process."""
    draw = random.Random(seed).expovariate
    offsets: list[float] = []
    offset = draw(rate)
    while offset < seconds:
        offsets.append(offset)
        offset += draw(rate)
    return offsets


class Arrivals:
    """Starts a task at each offset, from a timerfd: asyncio's timers are too coarse."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, offsets: list[float], client: Any
    ) -> None:
        self._loop = loop
        self._client = client
        start = time.monotonic() + 0.001
        self._times = [start + offset for offset in offsets]
        self._next = 0
        self._timer = TimerFd()
        self.tasks: set[asyncio.Task[None]] = set()
        self.done: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._timer.fd, self._arrive)
        self._timer.arm(int(start * 1e9))

    def _arrive(self) -> None:
        self._timer.read()
        now = time.monotonic()
        times, position = self._times, self._next
        while position < len(times) and times[position] <= now:
            task = self._loop.create_task(self._client(times[position]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            position += 1
        self._next = position
        if position < len(times):
            self._timer.arm(int(times[position] * 1e9))
            return
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()
        if not self.done.done():
            self.done.set_result(None)
