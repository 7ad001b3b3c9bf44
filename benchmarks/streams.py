"""How many live audio streams a process keeps up with: silero-vad's speech detector.

Each stream sends a chunk of 32 ms every 32 ms, at its own moment of the period, and
needs its probability before the next one comes. The number of streams grows until the
99th percentile of the latency, counted from the chunk's *intended* moment, is over
32 ms; the last number below it counts. What is served is the functional core that the
package's TorchScript file holds: audio and state in, probability and state out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pyasyncml
from pyasyncml import Batching

from .load import Meter, Run
from .timerfd import TimerFd

WORKLOAD = "silero-vad, 32 ms streams"
PERIOD = 0.032  # seconds, of 512 samples at 16 kHz
TICKS = 32  # a period
SAMPLES = 576  # with the 64 of the chunk before, as the detector's wrapper passes them
GROWTH = 1.15
FIRST = 32  # streams
LONGER = 4  # as many times the seconds of the other suites


class Stream(Protocol):
    def send(self, chunk: Any, intended: float) -> None: ...


class Latencies:
    """Notes what came back, and when."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.missing = 0

    def expect(self) -> None:
        self.missing += 1

    def note(self, intended: float) -> None:
        self.missing -= 1
        self.seconds.append(time.monotonic() - intended)


class NativeStream:
    def __init__(self, session: pyasyncml.Session, latencies: Latencies) -> None:
        self._infer = session.infer
        self._latencies = latencies

    def send(self, chunk: Any, intended: float) -> None:
        self._latencies.expect()
        future = self._infer(chunk)
        future.add_done_callback(lambda _: self._latencies.note(intended))


class ExecutorStream:
    """One TorchScript call a chunk; of each stream one after the other."""

    def __init__(
        self,
        core: Any,
        pool: concurrent.futures.Executor,
        state: Any,
        latencies: Latencies,
    ) -> None:
        self._core, self._pool, self._state = core, pool, state
        self._latencies = latencies
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Any, float]] = deque()

    def send(self, chunk: Any, intended: float) -> None:
        self._latencies.expect()
        self._waiting.append((chunk, intended))
        if len(self._waiting) == 1:
            self._begin()

    def _begin(self) -> None:
        future = self._loop.run_in_executor(self._pool, self._run, self._waiting[0][0])
        future.add_done_callback(self._end)

    def _run(self, chunk: Any) -> Any:
        import torch

        with torch.inference_mode():
            probability, self._state = self._core(chunk, self._state)
        return probability

    def _end(self, future: asyncio.Future[Any]) -> None:
        future.result()
        self._latencies.note(self._waiting.popleft()[1])
        if self._waiting:
            self._begin()


Open = Callable[[int, Latencies], Awaitable[tuple[list[Stream], Callable[[], Any]]]]


def detector() -> str | None:
    """The package's TorchScript file; None where it isn't installed."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        return None
    return str(Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit")


def native(path: str, max_rows: int | None) -> Open:
    async def start(count: int, latencies: Latencies) -> Any:
        import torch

        batching = None
        if max_rows is not None:
            axes = {"axes": {"state": 1}, "output_axes": {1: 1}}
            batching = Batching(max_rows=max_rows, **axes)  # type: ignore[arg-type]
        model = await pyasyncml.load(
            path,
            entry="_model.forward",
            instances=2,
            batching=batching,
            inputs=(torch.zeros(1, SAMPLES), torch.zeros(2, 1, 128)),
        )
        sessions = [model.session(state=torch.zeros(2, 1, 128)) for _ in range(count)]
        return [NativeStream(session, latencies) for session in sessions], model.close

    return start


def executor(path: str) -> Open:
    async def start(count: int, latencies: Latencies) -> Any:
        import torch

        torch.set_num_threads(1)
        core = torch.jit.load(path)._model  # type: ignore[no-untyped-call]
        pool = concurrent.futures.ThreadPoolExecutor(2)
        streams = [
            ExecutorStream(core, pool, torch.zeros(2, 1, 128), latencies)
            for _ in range(count)
        ]
        with torch.inference_mode():
            for _ in range(20):
                core(torch.zeros(1, SAMPLES), torch.zeros(2, 1, 128))

        async def close() -> None:
            pool.shutdown()

        return streams, close

    return start


def contenders(path: str) -> dict[str, Open]:
    return {
        "native, sessions in batches": native(path, 64),
        "native, sessions": native(path, None),
        "executor, a call a chunk": executor(path),
    }


async def _play(streams: list[Stream], seconds: float, latencies: Latencies) -> None:
    """Sends every stream's chunks at their moments, and waits for what is under way."""
    import torch

    loop = asyncio.get_running_loop()
    chunk = torch.randn(1, SAMPLES) * 0.1
    timer, ended = TimerFd(), loop.create_future()
    start = time.monotonic() + PERIOD
    step = PERIOD / TICKS
    ticks = max(TICKS, int(seconds / step))
    at = 0

    def tick() -> None:
        nonlocal at
        timer.read()
        now = time.monotonic()
        while at < ticks and start + at * step <= now:
            for stream in streams[at % TICKS :: TICKS]:
                stream.send(chunk, start + at * step)
            at += 1
        if at < ticks:
            timer.arm(int((start + at * step) * 1e9))
        elif not ended.done():
            ended.set_result(None)

    loop.add_reader(timer.fd, tick)
    timer.arm(int(start * 1e9))
    await ended
    loop.remove_reader(timer.fd)
    timer.close()
    until = time.monotonic() + 2.0
    while latencies.missing and time.monotonic() < until:
        await asyncio.sleep(0.005)


async def trial(start: Open, count: int, seconds: float) -> Run:
    latencies = Latencies()
    streams, close = await start(count, latencies)
    await _play(streams, min(0.2, seconds), latencies)
    del latencies.seconds[:]
    meter = Meter(asyncio.get_running_loop())
    await _play(streams, seconds, latencies)
    run = meter.stop(latencies.seconds, latencies.missing)
    await close()
    return run


def keeps_up(run: Run) -> bool:
    return run.unfinished == 0 and (run.p99_us or 0) <= 1e6 * PERIOD


async def most(start: Open, seconds: float, trials: int) -> tuple[int, Run]:
    """The largest number of streams that was kept up with, and the run with it."""
    count, best = FIRST, 0
    best_run = run = await trial(start, count, seconds)
    while keeps_up(run):
        best, best_run = count, run
        trials -= 1
        if trials == 0:
            break
        count = int(count * GROWTH) + 1
        run = await trial(start, count, seconds)
    return best, best_run
