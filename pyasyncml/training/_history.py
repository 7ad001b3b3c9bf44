"""What a training run tells: while it runs, and in the end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    `epoch`: of the last step that has ended, from 0. `step`: how many steps have ended,
    in this run. `steps`: how many there will be; None where the data doesn't say.
    `loss` and `metrics`: of the last step, as plain numbers. `validation`: of the last
    epoch that was validated; empty without. `steps_per_second`: since the last report.
    """

    epoch: int
    step: int
    steps: int | None
    loss: float
    metrics: dict[str, float]
    validation: dict[str, float]
    steps_per_second: float


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 0, means over its steps, and the validation's means
    over its rows (empty without)."""

    epoch: int
    steps: int
    loss: float
    metrics: dict[str, float]
    validation: dict[str, float]


@dataclass(frozen=True)
class History:
    """A whole run: the loss and the metrics of every step, and each whole epoch.

    `stopped`: it ended before its last epoch because `on_epoch` said so.
    """

    losses: list[float] = field(repr=False)
    metrics: dict[str, list[float]] = field(repr=False)
    epochs: list[Epoch]
    seconds: float
    stopped: bool

    @property
    def steps(self) -> int:
        """How many steps have ended."""
        return len(self.losses)
