"""What `fit` was asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
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


def rows_per_batch(asked: int | None, rows: int, fixed: int | None) -> int:
    """Of arrays of so many rows. `fixed`: what the step takes, None: any number.

    Raises `ValueError` and `InputError` for what isn't that.
    """
    if fixed is None:
        return min(asked or DEFAULT_BATCH, rows)
    if asked not in (None, fixed):
        raise ValueError(
            f"batch_size: the step was exported for batches of {fixed} rows, got "
            f"{asked}"
        )
    if rows % fixed:
        raise InputError(
            f"data: expected whole batches of {fixed} rows, which the step was "
            f"exported for; {rows} rows leave {rows % fixed} over"
        )
    return fixed
