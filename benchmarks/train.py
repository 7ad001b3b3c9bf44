"""Training small nets: `trainer.fit` against PyTorch's own loop in the main thread, and
what either does to an event loop with clients on it."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .load import Run

ROWS = 2048
BATCH = 32
CLIENTS = 32
STEPS = ROWS // BATCH  # an epoch
#: So many times `--seconds` clients are measured beside training: with a few hundred
#: beats a single wait of 4 ms for a processor would be the 99th percentile.
BESIDE_TIMES = 10

EAGER = ("eager", "eager, foreach", "eager, fused")
NATIVE = ("native", "native, fused")
ECHO = "echo beside training"
BESIDE = ("no training", "trainer.fit", "eager in a thread")

#: What torch.optim is asked for.
_HOW: dict[str, dict[str, bool]] = {
    "eager": {},
    "eager, foreach": {"foreach": True},
    "eager, fused": {"fused": True},
    "native": {},
    "native, fused": {"fused": True},
}


@dataclass(frozen=True)
class Net:
    name: str
    module: Any
    shape: tuple[int, ...]  # of a row
    optimizer: Callable[..., Any]


def nets() -> list[Net]:
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
            self.embed = nn.Linear(8, 32)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.encoder(self.embed(x)).mean(1))

    torch.manual_seed(0)
    return [
        Net(
            "training an MLP, Adam",
            nn.Sequential(
                nn.Linear(64, 128),
                nn.ReLU(),
                nn.Linear(128, 128),
                nn.ReLU(),
                nn.Linear(128, 10),
            ),
            (64,),
            lambda p, **how: torch.optim.Adam(p, lr=1e-3, **how),
        ),
        Net(
            "training a convolutional net, SGD",
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(16, 10),
            ),
            (1, 8, 8),
            lambda p, **how: torch.optim.SGD(p, lr=0.05, momentum=0.9, **how),
        ),
        Net(
            "training a transformer, AdamW",
            Transformer(),
            (12, 8),
            lambda p, **how: torch.optim.AdamW(p, lr=1e-3, **how),
        ),
    ]


class Job:
    """A net with its data and an optimizer of its own."""

    def __init__(self, net: Net, how: str, device: str = "cpu") -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, *net.shape, generator=generator)
        self.y = torch.randint(10, (ROWS,), generator=generator)
        self.device = device
        self.module = copy.deepcopy(net.module).to(device)
        self.optimizer = net.optimizer(self.module.parameters(), **_HOW[how])

    def eager(self, go_on: Callable[[int], bool]) -> int:
        """The best loop we know: rows are drawn an epoch at a time, the loss stays a
        tensor. How many steps it made."""
        import torch
        from torch.nn.functional import cross_entropy

        steps = 0
        while True:
            for rows in torch.randperm(ROWS).split(BATCH):
                if not go_on(steps):
                    return steps
                x, y = self.x[rows], self.y[rows]
                if self.device != "cpu":
                    x, y = x.to(self.device), y.to(self.device)
                self.optimizer.zero_grad()
                cross_entropy(self.module(x), y).backward()
                self.optimizer.step()
                steps += 1


class Eager:
    """PyTorch's loop, on the loop's thread."""

    def __init__(self, net: Net, how: str, device: str = "cpu") -> None:
        self._job = Job(net, how, device)

    async def run(self, seconds: float) -> Run:
        cpu, begin = time.process_time(), time.monotonic()
        end = begin + seconds
        steps = self._job.eager(lambda steps: not steps or time.monotonic() < end)
        wall = time.monotonic() - begin
        return Run(steps, wall, time.process_time() - cpu, None, None, lag=None)

    async def close(self) -> None:
        pass


class Native:
    """`trainer.fit` over the same arrays."""

    def __init__(
        self, net: Net, how: str, device: str | list[str] | None = None
    ) -> None:
        import torch

        from pyasyncml import Trainer

        self._job = job = Job(net, how)
        self.trainer = Trainer(
            job.module,
            loss=torch.nn.CrossEntropyLoss(),
            optimizer=job.optimizer,
            device=device,
            seed=0,
        )
        self._epoch_s = 0.0

    async def fit(self, epochs: int) -> float:
        """How many seconds that took."""
        begin = time.monotonic()
        await self.trainer.fit((self._job.x, self._job.y), epochs=epochs)
        return time.monotonic() - begin

    async def run(self, seconds: float) -> Run:
        if not self._epoch_s:
            await self.fit(1)  # traces
            self._epoch_s = await self.fit(1)
        epochs = max(1, round(seconds / self._epoch_s))
        cpu = time.process_time()
        wall = await self.fit(epochs)
        cpu = time.process_time() - cpu
        return Run(epochs * STEPS, wall, cpu, None, None, lag=None)

    async def close(self) -> None:
        await self.trainer.close()


def contenders(net: Net) -> dict[str, Eager | Native]:
    return {name: Eager(net, name) for name in EAGER} | {
        name: Native(net, name) for name in NATIVE
    }


@asynccontextmanager
async def beside(what: str, net: Net) -> AsyncIterator[None]:
    """Something trains meanwhile."""
    if what == "trainer.fit":
        native = Native(net, "native, fused")
        await native.fit(1)
        run = asyncio.ensure_future(native.fit(1 << 20))
        await asyncio.sleep(0)
        yield
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await native.close()
    elif what == "eager in a thread":
        job, stop = Job(net, "eager, fused"), threading.Event()
        task = asyncio.create_task(
            asyncio.to_thread(job.eager, lambda steps: not stop.is_set())
        )
        await asyncio.sleep(0)
        yield
        stop.set()
        await task
    else:
        yield
