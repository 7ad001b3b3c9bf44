"""What can go wrong, each with a message that says what to do.

Errors about the call itself are raised by the call. Errors that depend on loading or
on the run arrive through the future.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = [
    "BackendError",
    "DeadlineExceeded",
    "Error",
    "InputError",
    "LoadError",
    "ModelClosed",
    "OutOfMemory",
    "QueueFull",
    "ReloadUnderWay",
]


class Error(Exception):
    """Base of every error that pyasyncml defines."""


class LoadError(Error):
    """The file, the program, a device or a backend can't be used."""


class InputError(Error, ValueError):
    """Inputs don't fit the model's signature: number, names, shape, dtype or device."""


class QueueFull(Error):
    """The model's queue is at its bound (`Queue`); the request was not accepted."""


if sys.version_info >= (3, 11):  # asyncio.TimeoutError is TimeoutError from here on

    class DeadlineExceeded(Error, TimeoutError):
        """`timeout=` passed before the result was there; waiting work was not run."""

else:

    class DeadlineExceeded(Error, TimeoutError, asyncio.TimeoutError):
        """`timeout=` passed before the result was there; waiting work was not run."""


class ModelClosed(Error):
    """The model was closed before the request could run."""


class ReloadUnderWay(Error):
    """The model's program or weights are being changed already: await that first."""


class BackendError(Error, RuntimeError):
    """The framework failed in a run; its message is included. The model goes on."""


class OutOfMemory(Error, MemoryError):
    """Host or device memory ran out in a run. The model goes on."""
