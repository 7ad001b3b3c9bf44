"""What `fit` was asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..model import Model
from . import _data
from ._history import Epoch

OnEpoch = Callable[[Epoch], Awaitable[Any]]

DEFAULT_BATCH = 32


@dataclass
class Plan:
    """`batch` and `shuffle` are of arrays; the rest as `Trainer.fit` explains it."""

    priority: int
    prefetch: int
    validation: _data.Arrays | _data.Batches | None
    on_epoch: OnEpoch | None
    stop_on_nan: bool
    publish: list[Model]
    publish_every: int
    batch: int = DEFAULT_BATCH
    shuffle: bool = False

    @property
    def epoch_ends(self) -> bool:
        """Whether Python has something to do after each epoch."""
        return self.validation is not None or self.on_epoch is not None
