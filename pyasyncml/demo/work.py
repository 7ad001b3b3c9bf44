"""The same work, awaited twice: natively, and through `asyncio.to_thread`."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

import pyasyncml as ml

from .audio import RATE
from .heartbeat import Heartbeat

# Requests for digits kept in flight; the audio stream has one, as a stream must.
IN_FLIGHT = 64


class Contender(Protocol):
    """One way to await the two models."""

    name: str

    async def open(self, digits: Path, speech: Path) -> None: ...

    def classify(self, image: torch.Tensor) -> Awaitable[torch.Tensor]: ...

    def detect(self, chunk: torch.Tensor) -> Awaitable[torch.Tensor]: ...

    async def close(self) -> None: ...


class Native:
    """The models on pyasyncml's worker threads, one instance and one thread each."""

    name = "pyasyncml"

    async def open(self, digits: Path, speech: Path) -> None:
        self._digits = await ml.load(digits)
        # The detector keeps its state inside: one stream, one instance, and no
        # warm-up of the loader's choosing before the stream's first chunk.
        self._speech = await ml.load(speech, warmup=False)

    def classify(self, image: torch.Tensor) -> Awaitable[torch.Tensor]:
        return self._digits.infer(image)

    def detect(self, chunk: torch.Tensor) -> Awaitable[torch.Tensor]:
        return self._speech.infer(chunk, RATE)

    async def close(self) -> None:
        await asyncio.gather(self._digits.close(), self._speech.close())


class ToThread:
    """The models called from Python on asyncio's own default pool of threads."""

    name = "asyncio.to_thread"

    async def open(self, digits: Path, speech: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._digits = torch.jit.load(str(digits)).eval()
            self._speech = torch.jit.load(str(speech)).eval()

    def classify(self, image: torch.Tensor) -> Awaitable[torch.Tensor]:
        return asyncio.to_thread(_run, self._digits, image)

    def detect(self, chunk: torch.Tensor) -> Awaitable[torch.Tensor]:
        return asyncio.to_thread(_run, self._speech, chunk, RATE)

    async def close(self) -> None:
        pass


def _run(module: Callable[..., torch.Tensor], *inputs: object) -> torch.Tensor:
    with torch.inference_mode():
        return module(*inputs)


@dataclass
class Outcome:
    """What one contender did so far. Times in seconds; `logits` and `probabilities`
    hold one tensor a turn."""

    name: str
    logits: list[torch.Tensor] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)
    requests: int = 0
    elapsed: float = 0.0
    due: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)


async def run_turn(
    contender: Contender,
    outcome: Outcome,
    images: Sequence[torch.Tensor],
    chunks: Sequence[torch.Tensor],
) -> None:
    """Awaits every image, 64 in flight, and beside them the chunks in their order,
    while a 1 ms heartbeat ticks on the same loop; adds what came out to `outcome`."""
    logits: list[torch.Tensor | None] = [None] * len(images)
    probabilities: list[torch.Tensor] = []
    todo = iter(range(len(images)))

    async def client() -> None:
        for i in todo:
            logits[i] = await contender.classify(images[i])

    async def stream() -> None:
        for chunk in chunks:
            probabilities.append(await contender.detect(chunk))

    with Heartbeat() as beat:
        start = time.perf_counter()
        await asyncio.gather(stream(), *(client() for _ in range(IN_FLIGHT)))
        elapsed = time.perf_counter() - start
    # One tensor each: among tens of thousands kept, the collector's walks would show
    # as lag of the loop.
    outcome.logits.append(torch.cat([row for row in logits if row is not None]))
    outcome.probabilities.append(torch.cat(probabilities))
    outcome.requests += len(images) + len(chunks)
    outcome.due += [outcome.elapsed + due for due in beat.due]
    outcome.lag += beat.lag
    outcome.elapsed += elapsed


async def warm_up(contender: Contender, images: Sequence[torch.Tensor]) -> None:
    """Enough calls on every thread for TorchScript's profiling executor to settle.
    The detector is left alone: what it hears first is the stream."""
    for _ in range(4):
        await asyncio.gather(*map(contender.classify, images[:IN_FLIGHT]))
