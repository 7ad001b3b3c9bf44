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
)
from .model import Health, Model, Queue, Session, Signature, Stats, TensorSpec

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Batching",
    "DeadlineExceeded",
    "Device",
    "Error",
    "Future",
    "Health",
    "InputError",
    "LoadError",
    "Model",
    "ModelClosed",
    "OutOfMemory",
    "Pad",
    "Queue",
    "QueueFull",
    "Session",
    "Signature",
    "Stats",
    "TensorSpec",
    "call",
    "devices",
    "export",
    "load",
    "testing",
]

# Exiting inside a running model aborts the process: wait for the workers first.
atexit.register(shut_down)
