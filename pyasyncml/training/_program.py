"""What the driver of a training run asks of a framework: one step as a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from ..errors import BackendError
from ..model import Model


class Schedule(Protocol):
    """Learning rates, ahead of the steps that use them."""

    #: Whether every row is the same.
    constant: bool

    def take(self, steps: int) -> Any:
        """The next steps' rates: float64[steps, columns], C-contiguous."""


class Evaluate(Protocol):
    async def __call__(self, data: Any, batch_size: int) -> dict[str, float]:
        """Means of the loss and the other values over the data, nothing trained."""


class Program(Protocol):
    """A training step. Each run of `model` is one: its inputs are `columns` learning
    rates (0-d float64) and the batch, its outputs the loss and the other `values`, each
    a number. What it trains is changed in place, by runs and not otherwise. `model`,
    `columns` and `values` are there once `open` has returned.
    """

    model: Model

    @property
    def rows(self) -> int | None:
        """How many rows a batch must have; None: any number of them."""

    @property
    def columns(self) -> int: ...

    @property
    def values(self) -> Sequence[str]: ...

    async def open(self, batch: tuple[Any, ...], idle: bool) -> None:
        """Makes `model` one for batches like this one; cheap where it is. `idle`: no
        step is under way, so that what has changed since can be looked up."""

    def fits(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether the model for the first batch takes batches of these shapes."""

    def schedule(self, per_epoch: int | None, step: int) -> Schedule | None:
        """Rates from the state that `advanced` has reached; None: no columns.
        `per_epoch`: steps, where that is known; `step`: of the epoch, the next."""

    def advanced(self, steps: int, epochs: int) -> None:
        """So many steps have ended since the last call, and so many epochs. The
        framework's own objects are brought up to date."""

    def epoch_metric(self) -> bool:
        """Whether `epoch_ended` must be called after each epoch."""

    def epoch_ended(self, metric: float) -> None:
        """For schedules that follow a metric: the validation's loss, or the epoch's."""

    @property
    def evaluate(self) -> Evaluate | None:
        """None: it can't without training."""

    async def snapshot(
        self, position: dict[str, int]
    ) -> Callable[[str], Awaitable[None]]:
        """Copies what a checkpoint holds; what it returns writes that to a path."""

    async def restore(self, path: str) -> dict[str, int]:
        """Puts a checkpoint in place, whole or not at all; gives the position."""

    @property
    def driving(self) -> bool:
        """Whether what is trained may have changed, or be about to."""

    async def state(self) -> Any:
        """A copy of what is trained, for people. Raises `Error` where they have it
        already."""

    async def weights(self) -> Any:
        """A copy of what is trained; its `successor(model)` gives a model over it."""

    async def close(self) -> None:
        """Ends the model. May be called again."""


def numbers(outputs: Any, count: int) -> list[float]:
    """The first so many outputs of a step."""
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    items = outputs if isinstance(outputs, tuple) else (outputs,)
    try:
        return [float(item.item()) for item in items[:count]]
    except (AttributeError, TypeError, ValueError) as error:
        raise BackendError(f"a step's values are not all numbers: {error}") from error
