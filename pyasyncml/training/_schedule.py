"""Learning rates of many steps ahead: a run needs no Python between two steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from ._torch_step import TracedStep

Cadence = Literal["step", "epoch"]


class Schedule:
    """The numbers that a traced step takes with each call, worked out in advance.

    `rows()` has a row a step and a column for each of the step's `columns`. It plays
    the scheduler on a copy of optimizer and scheduler and leaves the real ones alone.

    `cadence`: whether the scheduler is stepped after each step or after each epoch of
    `steps_per_epoch` steps, of which `position` were taken before the first row; None:
    no row is known to end one.
    """

    def __init__(
        self,
        step: TracedStep,
        scheduler: Any = None,
        cadence: Cadence = "epoch",
        steps_per_epoch: int | None = None,
        position: int = 0,
    ) -> None:
        self.step = step
        self.optimizer = step.optimizer
        self.scheduler = scheduler
        self.cadence = cadence
        self.steps_per_epoch = steps_per_epoch
        self.position = position

    @property
    def constant(self) -> bool:
        """Whether every row is the same until a metric changes it."""
        rates = all(column.startswith("lr[") for column in self.step.columns)
        return rates and (self.scheduler is None or needs_metric(self.scheduler))

    def rows(self) -> Iterator[list[float]]:
        """The next steps' numbers, without end. About 3 µs a row and group, more with a
        scheduler that is stepped for each row.

        Raises `ValueError` where the scheduler changes what is part of the graph.
        """
        buckets = self.step.buckets
        taken = [bucket.taken(self.optimizer) for bucket in buckets]
        for k, groups in enumerate(self._groups()):
            row: list[float] = []
            for bucket, before in zip(buckets, taken, strict=True):
                numbers = bucket.rule.numbers(groups[bucket.group], before + k + 1)
                row += [numbers[column] for column in bucket.columns]
            yield row

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """The optimizer's groups before each of the next steps."""
        while self.scheduler is None or needs_metric(self.scheduler):
            yield self.optimizer.param_groups
        optimizer, scheduler = _played(self.optimizer, self.scheduler)
        position = self.position
        fixed = self.step.fixed(self.optimizer)
        while True:
            yield optimizer.param_groups
            position += 1
            if self.cadence == "epoch":
                if self.steps_per_epoch is None or position < self.steps_per_epoch:
                    continue
                position = 0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler.step()
            if self.step.fixed(optimizer) != fixed:
                raise ValueError(
                    f"scheduler: {type(scheduler).__name__} changes more than the "
                    "learning rate, and the step was traced without that "
                    "(trace_step(varying=varying(scheduler)))"
                )


class RealScheduler:
    """The scheduler itself, None included: stepped as PyTorch's own loop would step it,
    so that `optimizer.param_groups` say what that would have left there, and as a
    checkpoint keeps it. Where in the epoch training stands is the trainer's to say.

    One that wants a metric (`ReduceLROnPlateau`) has `needs_metric`: it is stepped once
    an epoch, by `advance_with(metric)`, and rows are good no further than that.

    Raises `TypeError` or `ValueError` for what is no scheduler of this optimizer.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, cadence: Cadence
    ) -> None:
        check_scheduler(optimizer, scheduler, cadence)
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._cadence = cadence
        self.needs_metric = needs_metric(scheduler)

    def advance(self, steps: int, epochs: int) -> None:
        """So many steps have ended, and with them so many epochs."""
        if self._scheduler is not None and not self.needs_metric:
            for _ in range(steps if self._cadence == "step" else epochs):
                self._step()

    def advance_with(self, metric: float) -> None:
        """An epoch ended with this metric: for schedulers that need one."""
        self._step(metric)

    def _step(self, *metric: float) -> None:
        # PyTorch warns where a scheduler is stepped before its optimizer ever was.
        self._optimizer._opt_called = True  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*")
            self._scheduler.step(*metric)

    def state_dict(self) -> dict[str, Any]:
        scheduler = self._scheduler
        return {"scheduler": None if scheduler is None else scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (self._scheduler is None) != (state["scheduler"] is None):
            raise ValueError(
                "the checkpoint was written "
                + ("without" if state["scheduler"] is None else "with")
                + " a learning-rate scheduler"
            )
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])


def needs_metric(scheduler: Any) -> bool:
    """Whether stepping it takes a metric: it is stepped per epoch then."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return isinstance(scheduler, ReduceLROnPlateau)


def varying(scheduler: Any) -> frozenset[str]:
    """The hyperparameters that a scheduler changes: `trace_step`'s argument."""
    names = {"lr"}
    for part in (scheduler, *getattr(scheduler, "_schedulers", ())):
        if getattr(part, "cycle_momentum", False) or getattr(part, "use_beta1", False):
            names |= {"momentum", "betas"}
        if part is not scheduler:
            names |= varying(part)
    return frozenset(names)


def check_scheduler(
    optimizer: torch.optim.Optimizer, scheduler: Any, cadence: str
) -> None:
    """Raises `TypeError` or `ValueError` for what is no scheduler of this optimizer."""
    from torch.optim.lr_scheduler import LRScheduler

    if cadence not in ("step", "epoch"):
        raise ValueError(f"cadence: expected 'step' or 'epoch', got {cadence!r}")
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "scheduler: expected a torch.optim.lr_scheduler, "
            f"got {type(scheduler).__name__}"
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError("scheduler: was made for another optimizer")
    if needs_metric(scheduler) and cadence == "step":
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} takes a metric and is stepped by "
            "the epoch"
        )


def _played(optimizer: torch.optim.Optimizer, scheduler: Any) -> tuple[Any, Any]:
    """A copy of the pair whose parameters are the real ones and that has no state."""
    memo: dict[int, Any] = {id(optimizer.state): {}}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            memo[id(parameter)] = parameter
    try:
        copied = copy.deepcopy((optimizer, scheduler), memo)
    except Exception as error:
        raise TypeError(
            f"scheduler: {type(scheduler).__name__} can't be copied, which working out "
            f"its learning rates ahead takes ({error})"
        ) from error
    return copied
