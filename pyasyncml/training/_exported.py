"""Training steps that were exported: from their files, and what they have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._call import call
from .._files import is_bundle
from ..model import Model
from ._program import Program


async def load_program(
    source: Any, entry: str, device: str | None, threads: int
) -> Program:
    """See `Trainer.load`."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if await call(is_bundle, path):
            from ._xla_program import XlaProgram

            return await XlaProgram.load(path, entry, device, threads)
    from ._tensorflow_program import TensorflowProgram

    return await TensorflowProgram.load(source, entry, device, threads)


class ExportedStep:
    """Nothing to open and no rates: what a step does is in the file. It takes the batch
    and gives the loss (the first output, or the one of that name) and metrics."""

    columns = 0
    driving = True
    evaluate = None

    def __init__(self, model: Model) -> None:
        self.model = model
        self.values: Sequence[str] = [
            output.name or ("loss" if i == 0 else f"output {i}")
            for i, output in enumerate(model.signature.outputs)
        ]

    async def open(self, batch: tuple[Any, ...], idle: bool) -> None:
        pass

    def fits(self, shapes: Sequence[Sequence[int]]) -> bool:
        return True

    def schedule(self, per_epoch: int | None, step: int) -> None:
        return None

    def advanced(self, steps: int, epochs: int) -> None:
        pass

    def epoch_metric(self) -> bool:
        return False

    def epoch_ended(self, metric: float) -> None:
        pass

    async def close(self) -> None:
        await self.model.close()
