"""GPUs: inference and training on one and on two, what waiting costs, copies beside
kernels. As devices.py does on simulated ones, and in a process of its own, too.

No GPU was there when this was written: `tests/test_benchmarks.py` runs it on simulated
devices, to see that it runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

from . import train
from .devices import Bench, Timeline, serve
from .load import Run

FED = "GPU, MLP of 4 x 4096, 64 rows"
WAITING = "waiting for a GPU, MLP of 4 x 4096, 64 rows"
TRAINING = "GPU, training an MLP of 4 x 1024, Adam"
ROWS, SIZE, TRAINED = 64, 4096, 1024


def missing() -> str:
    """Why there is nothing to measure; "": there is."""
    try:
        import torch
    except ImportError:
        return "torch isn't installed"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device here"


def count() -> int:
    """How many take part, at most two."""
    import torch

    return min(2, torch.cuda.device_count())


def mlp(size: int) -> Any:
    from torch import nn

    layers = (part for _ in range(4) for part in (nn.Linear(size, size), nn.ReLU()))
    return nn.Sequential(*layers)


class Gpus(Bench):
    def __init__(
        self, names: list[str], size: int = SIZE, trained: int = TRAINED
    ) -> None:
        import torch

        super().__init__(names, mlp(size).eval(), torch.zeros(ROWS, size))
        net = train.Net(
            TRAINING,
            mlp(trained),
            (trained,),
            lambda p, **how: torch.optim.Adam(p, lr=1e-3, **how),
        )
        self.jobs: dict[str, train.Native | train.Eager] = {
            "native1": train.Native(net, "native", names[0]),
            "eager1": train.Eager(net, "eager", names[0]),
        }
        if len(names) > 1:
            self.jobs["native2"] = train.Native(net, "native", names)

    async def close(self) -> None:
        for job in self.jobs.values():
            await job.close()
        await super().close()

    async def spans(self, instances: int, seconds: float) -> Timeline:
        import torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            await self.watched(instances, seconds)
            torch.cuda.synchronize()
        found = [
            (kind_of(event.name), event.time_range)
            for event in profiled.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        return [(kind, span.start / 1e6, span.end / 1e6) for kind, span in found]

    async def answer(self, what: str, seconds: float) -> Any:
        job = self.jobs.get(what.removeprefix("train-"))
        if job is not None and what.startswith("train-"):
            return dataclasses.asdict(await self.steps(job, seconds))
        return await super().answer(what, seconds)

    async def steps(self, job: train.Native | train.Eager, seconds: float) -> Run:
        """Steps that have ended, not those that the host has got rid of."""
        import torch

        run = await job.run(seconds)
        begin = time.monotonic()
        torch.accelerator.synchronize(self.names[0])
        return dataclasses.replace(run, wall_s=run.wall_s + time.monotonic() - begin)


def kind_of(name: str) -> str:
    """Of what CUDA's profiler calls so, in the words of devices.py."""
    if "HtoD" in name:
        return "to device"
    return "to host" if "DtoH" in name else "kernel"


if __name__ == "__main__":
    asyncio.run(serve(Gpus([f"cuda:{index}" for index in range(count())])))
