"""A 1 ms beat on the event loop, and how late the loop answers it.

asyncio's own timers are rounded up to the selector's millisecond, so a beat made of
`call_later` measures the rounding. A timerfd(2) on an absolute schedule does not
drift and does not coalesce: a beat that the loop was too busy to answer is counted
when the loop comes back, with the lag it had by then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from types import TracebackType

PERIOD_NS = 1_000_000

_TFD_TIMER_ABSTIME = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Heartbeat:
    """Ticks while entered, on the running loop.

    `due`: seconds from the start of the beat to each beat's intended time.
    `lag`: seconds from then until the loop answered it.
    """

    def __init__(self) -> None:
        self.due: list[float] = []
        self.lag: list[float] = []
        self._fd = -1
        self._start_ns = 0
        self._beats = 0

    def __enter__(self) -> Heartbeat:
        self._loop = asyncio.get_running_loop()
        self._fd = _check(
            _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        )
        self._start_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        first = divmod(self._start_ns + PERIOD_NS, 1_000_000_000)
        # struct itimerspec: the interval, then the first expiry.
        spec = struct.pack("@4l", 0, PERIOD_NS, *first)
        _check(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None))
        self._loop.add_reader(self._fd, self._beat)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _beat(self) -> None:
        try:
            (expired,) = struct.unpack("@Q", os.read(self._fd, 8))
        except BlockingIOError:
            return
        elapsed_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self._start_ns
        for _ in range(expired):
            self._beats += 1
            due_ns = self._beats * PERIOD_NS
            self.due.append(due_ns * 1e-9)
            self.lag.append((elapsed_ns - due_ns) * 1e-9)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
