"""Loop lag: how late the event loop answers a 1 ms heartbeat.

A timerfd fires on an absolute schedule and the loop reads it like any socket. The lag
of a beat is the time from when it was due to when the loop's callback ran. A blocked
loop doesn't thin the sample: the beats it missed are counted, each with its own lag.
asyncio's own timers would not do, they round to the next millisecond.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import dataclass

from .quantiles import quantile
from .timerfd import TimerFd

PERIOD_NS = 1_000_000


@dataclass(frozen=True)
class Lag:
    beats: int
    missed: int
    p50_us: float
    p99_us: float
    max_us: float


class Beat:
    """Started before a measurement and stopped after it, on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer = TimerFd()
        self._due = time.monotonic_ns() + PERIOD_NS
        self._lags = array("q")  # a list would be seen to grow (overload.py)
        self._missed = 0
        self._timer.arm(self._due, PERIOD_NS)
        loop.add_reader(self._timer.fd, self._tick)

    def _tick(self) -> None:
        fired = self._timer.read()
        lag = time.monotonic_ns() - self._due
        self._due += fired * PERIOD_NS
        self._missed += max(0, fired - 1)
        while fired > 0:
            self._lags.append(lag)
            lag -= PERIOD_NS
            fired -= 1

    def stop(self) -> Lag:
        self._tick()  # a loop that was blocked to the end owes these beats
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()
        lags = sorted(self._lags) or [0]
        return Lag(
            beats=len(self._lags),
            missed=self._missed,
            p50_us=quantile(lags, 0.50) / 1e3,
            p99_us=quantile(lags, 0.99) / 1e3,
            max_us=lags[-1] / 1e3,
        )
