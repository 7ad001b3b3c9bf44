"""Native awaitables for machine learning.

>>> import asyncio, pyasyncml as ml
>>> async def main():
...     async with await ml.testing.echo() as model:
...         return await model.infer(3.0)
>>> asyncio.run(main())
3.0
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from . import export, testing
from ._call import call
from ._core import Future, shut_down
from ._load import load
from .backends import Device, devices
from .batching import Batching, Pad
from .errors import (
    BackendError,
    DeadlineExceeded,
    Error,
    InputError,
    LoadError,
    ModelClosed,
    OutOfMemory,
    QueueFull,
    ReloadUnderWay,
)
from .model import (
    Health,
    InstanceStats,
    Model,
    Queue,
    Session,
    Signature,
    Stats,
    TensorSpec,
)

if TYPE_CHECKING:
    from . import export
    from .training import Epoch, History, Progress, Trainer, TrainingRun

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Batching",
    "DeadlineExceeded",
    "Device",
    "Epoch",
    "Error",
    "Future",
    "Health",
    "History",
    "InputError",
    "InstanceStats",
    "LoadError",
    "Model",
    "ModelClosed",
    "OutOfMemory",
    "Pad",
    "Progress",
    "Queue",
    "QueueFull",
    "ReloadUnderWay",
    "Session",
    "Signature",
    "Stats",
    "TensorSpec",
    "Trainer",
    "TrainingRun",
    "call",
    "devices",
    "export",
    "load",
    "testing",
]

# Exiting inside a running model aborts the process: wait for the workers first.
atexit.register(shut_down)


def __getattr__(name: str) -> Any:
    """What needs more than CPython comes when it is first asked for."""
    import importlib

    if name == "export":
        return importlib.import_module(".export", __name__)
    if name in ("Epoch", "History", "Progress", "Trainer", "TrainingRun"):
        return getattr(importlib.import_module(".training", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
