"""Training as an awaitable: `Trainer`."""

from ._history import Epoch, History, Progress
from ._run import TrainingRun
from ._trainer import Trainer

__all__ = ["Epoch", "History", "Progress", "Trainer", "TrainingRun"]
