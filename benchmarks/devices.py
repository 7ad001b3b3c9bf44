"""Simulated devices: two against one, what waiting costs, copies beside kernels.

The devices are those of the tests (tests/accelerator): their kernels take a millisecond
and no core, so that what is measured is what keeps them fed. They change the process
that loads them, hence one of its own: it reads "WHAT SECONDS" lines from stdin and
answers each with a line of JSON, as `alone` does.

`native` is pyasyncml's worker. `blocking` and `spinning` are a thread that does by hand
what a worker does, and then waits in `Event.synchronize()`, or asks `Event.query()`
again and again. The CPU of these runs is that of the worker's thread alone. The double
blocks on a condition variable, as a device that interrupts can; CUDA may burn a core
there, and has no other wait behind c10's interface.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import Contender, nothing_to_close
from .load import Run, closed

FED, WAITING = "device, kernels of 1 ms", "waiting for a device, kernels of 1 ms"
IN_FLIGHT = 64
WAITS = ("native", "blocking", "spinning")
KERNEL, COPY = 1e-3, 0.4e-3  # seconds; copies take time in the timeline only
SHAPE = (1, 1024)
TESTS = Path(__file__).resolve().parent.parent / "tests"

#: [kind, begin, end] in seconds; kinds are "to device", "kernel", "to host".
Timeline = list[tuple[str, float, float]]


def missing() -> list[str]:
    """What isn't there. The double is part of the repository, not of the package."""
    return [] if (TESTS / "accelerator").is_dir() else ["tests/accelerator"]


def under_kernels(timeline: Timeline) -> float:
    """The share of the copies' time, both ways, in which a kernel ran."""
    kernels = [(begin, end) for kind, begin, end in timeline if kind == "kernel"]
    copies = [(begin, end) for kind, begin, end in timeline if kind != "kernel"]
    both = sum(
        max(0.0, min(end, until) - max(begin, since))
        for begin, end in copies
        for since, until in kernels
    )
    return both / max(1e-9, sum(end - begin for begin, end in copies))


# --- in the process of its own ---


def worker_seconds() -> float:
    """CPU that pyasyncml's workers have used."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "pyasyncml":
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Bench:
    """Models on devices, one or two, and what can be asked of them."""

    def __init__(self, names: list[str], module: Any, x: Any) -> None:
        self.names = names
        self.module = module
        self.x = x

    async def open(self) -> None:
        import pyasyncml

        self.models = [
            await pyasyncml.load(
                self.module,
                inputs=(self.x,),
                device=self.names[:count],
                instances=instances,
            )
            for count, instances in ((1, 1), (2, 1), (1, 2))
        ]

    async def close(self) -> None:
        for model in self.models:
            await model.close()

    def pace(self) -> None:
        """Before what is measured."""

    def contender(self, count: int) -> Contender:
        return Contender("native", self.models[count - 1].infer, nothing_to_close)

    async def fed(self, count: int, seconds: float) -> Run:
        self.pace()
        return await closed(self.contender(count), self.x, IN_FLIGHT, seconds)

    async def native(self, seconds: float) -> Run:
        self.pace()
        before = worker_seconds()
        run = await closed(self.contender(1), self.x, 1, seconds)
        return dataclasses.replace(run, cpu_s=worker_seconds() - before)

    async def by_hand(self, wait: Callable[[Any], None], seconds: float) -> Run:
        """On a thread that has the process to itself."""
        self.pace()
        return await asyncio.to_thread(self._by_hand, wait, seconds)

    def _by_hand(self, wait: Callable[[Any], None], seconds: float) -> Run:
        import torch

        device = self.names[0]
        module = copy.deepcopy(self.module).to(device)
        source, target = self.x.pin_memory(), module(self.x.to(device)).cpu()
        stream, event = torch.Stream(device), torch.Event(device)
        target = target.detach().pin_memory()
        requests, cpu, begin = 0, time.thread_time(), time.monotonic()
        with torch.inference_mode(), stream:
            while not requests or time.monotonic() < begin + seconds:
                y = module(source.to(device, non_blocking=True))
                target.copy_(y, non_blocking=True)
                event.record(stream)
                wait(event)
                requests += 1
        return Run(
            requests=requests,
            wall_s=time.monotonic() - begin,
            cpu_s=time.thread_time() - cpu,
            p50_us=None,
            p99_us=None,
            lag=None,
        )

    async def spans(self, instances: int, seconds: float) -> Timeline:
        """What one device did in that time, with requests waiting all the time."""
        raise NotImplementedError

    async def watched(self, instances: int, seconds: float) -> None:
        model = self.contender(1 if instances == 1 else 3)
        await closed(model, self.x, IN_FLIGHT, seconds)

    async def timeline(self, instances: int, seconds: float) -> Timeline:
        """From the middle."""
        spans = await self.spans(instances, 3 * seconds)
        since = min(begin for _, begin, _ in spans) + seconds
        return [
            (kind, begin - since, end - since)
            for kind, begin, end in spans
            if since <= begin and end <= since + seconds
        ]

    async def answer(self, what: str, seconds: float) -> Any:
        if what.startswith("timeline"):
            return {"timeline": await self.timeline(int(what[-1]), seconds)}
        if what in ("1", "2"):
            run = await self.fed(int(what), seconds)
        elif what == "native":
            run = await self.native(seconds)
        else:
            run = await self.by_hand(spin if what == "spinning" else block, seconds)
        return dataclasses.asdict(run)


class Simulated(Bench):
    def __init__(self, accelerator: Any) -> None:
        import torch

        self.accelerator = accelerator
        self.devices = accelerator.devices(2)
        names = [device.name for device in self.devices]
        module = torch.nn.Sequential(torch.nn.Tanh())
        super().__init__(names, module, torch.zeros(SHAPE))

    def pace(self, *, copies: float = 0) -> None:
        for device in self.devices:
            device.slow(kernel=KERNEL, to_device=copies, to_host=copies)

    async def spans(self, instances: int, seconds: float) -> Timeline:
        self.pace(copies=COPY)
        with self.accelerator.timeline() as spans:
            await self.watched(instances, seconds)
        kinds = self.accelerator.KINDS
        return [(kinds[span.kind], span.begin, span.end) for span in spans]


def block(event: Any) -> None:
    event.synchronize()


def spin(event: Any) -> None:
    while not event.query():
        pass


async def serve(bench: Bench) -> None:
    """Answers what stdin asks."""
    await bench.open()
    for what in ("1", "2", *WAITS):
        await bench.answer(what, 0.02)
    for line in sys.stdin:
        what, seconds = line.split()
        print(json.dumps(await bench.answer(what, float(seconds))), flush=True)
    await bench.close()


async def main() -> None:
    sys.path.insert(0, str(TESTS))
    import accelerator  # type: ignore[import-not-found]

    await serve(Simulated(accelerator))


if __name__ == "__main__":
    asyncio.run(main())
