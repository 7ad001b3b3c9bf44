"""timerfd(2) on the monotonic clock, on every Python (os.timerfd_* came with 3.13)."""

from __future__ import annotations

import ctypes
import os
import time

_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_ABSTIME = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


def _split(nanoseconds: int) -> _Timespec:
    return _Timespec(*divmod(nanoseconds, 1_000_000_000))


class TimerFd:
    """A timer that fires at absolute times of `time.monotonic_ns()`."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _Itimerspec()

    def arm(self, first_ns: int, interval_ns: int = 0) -> None:
        """Fires at `first_ns`, and every `interval_ns` after it unless that is 0."""
        self._spec.value = _split(first_ns)
        self._spec.interval = _split(interval_ns)
        if _libc.timerfd_settime(self.fd, _ABSTIME, ctypes.byref(self._spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def read(self) -> int:
        """How often it fired since the last read."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)
