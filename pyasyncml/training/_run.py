"""A training run: its state, and those who watch it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Sequence,
)
from typing import Any, TypeVar

from .._call import withdraw
from .._core import Future, Steps
from ._history import Epoch, History, Progress
from ._signal import Signal
from ._turns import Turns

T = TypeVar("T")

#: Seconds between two reports, at least: nobody reads faster, and each wakes the loop.
_INTERVAL = 0.02
#: Where nobody reads: what steps give is taken over in pieces that hold up no loop.
_UNREAD_INTERVAL = 0.5


class TrainingRun:
    """A run of `Trainer.fit`, under way since the call, like an `asyncio.Task`.

    ``await run`` gives its `History`, or raises what went wrong; cancelling whoever
    awaits it cancels the run, which ends after the step under way. ``async for progress
    in run`` gives `Progress`; an iteration slower than the training misses reports, and
    never slows it, but gets the last. A failure is raised in the iteration too.
    """

    def __init__(self, steps: int | None, turns: Turns) -> None:
        self._names: tuple[str, ...] = ()
        self._loss = 0  # which of them it is
        self._total = steps
        self._began = self._reported = time.monotonic()
        self._at_report = 0
        self._rate = 0.0
        self._epoch = 0
        self._validation: dict[str, float] = {}
        self._losses: list[float] = []
        self._metrics: dict[str, list[float]] = {}
        self._epochs: list[Epoch] = []
        self._latest: Progress | None = None
        self._version = 0
        self._news = Signal()  # for those who iterate
        self._listening: asyncio.Future[None] | None = None
        self._listeners = 0
        self._paused = False
        self._stopped = False
        self._turns = turns
        self._in_turn = False
        self._moved = Signal()  # it went on after a pause, or a turn ended
        self._steps: Steps | None = None
        self._first = 0  # of them, in this turn
        #: Takes back steps that were submitted ahead and have not begun.
        self.take_back: Callable[[], None] | None = None
        self._task: asyncio.Task[History]
        self._bar: asyncio.Task[None] | None = None  # kept from being collected

    def _start(self, main: Coroutine[Any, Any, History]) -> None:
        self._task = asyncio.get_running_loop().create_task(main)
        self._task.add_done_callback(lambda task: self._news.tell())

    # --- for whoever trains ---

    def __await__(self) -> Generator[Any, None, History]:
        return self._task.__await__()

    @property
    def steps(self) -> int | None:
        """How many there will be; None where the data doesn't say."""
        return self._total

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._task.get_loop()

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._task.done()

    @property
    def paused(self) -> bool:
        """Whether `pause` was called and `resume` wasn't since."""
        return self._paused

    def pause(self) -> Awaitable[None]:
        """Begin no further step until `resume`; the one under way ends.

        Awaiting what this returns waits for that: no step, and no validation, is under
        way then. What is changed in a pause (the module's mode, what the optimizer is
        set to) counts from the next step on.
        """
        self._paused = True
        self.interrupt()
        return _Stillness(self)

    def resume(self) -> None:
        """Go on after a `pause`."""
        self._paused = False
        self._turns.changes += 1  # there was time for it
        self._moved.tell()

    def cancel(self) -> bool:
        """End after the step under way: awaiting the run raises `CancelledError` then.

        The trainer and what it trains are as after that step. False: it has ended.
        """
        return self._task.cancel()

    def __aiter__(self) -> AsyncIterator[Progress]:
        return self._reports()

    async def _reports(self) -> AsyncIterator[Progress]:
        seen = 0
        self._listeners += 1
        if self._listening is not None and not self._listening.done():
            self._listening.set_result(None)
        try:
            while True:
                if self._version > seen and self._latest is not None:
                    seen = self._version
                    yield self._latest
                elif self._task.done():
                    break
                else:
                    await self._news.wait()
        finally:
            self._listeners -= 1
        if not self._task.cancelled():
            self._task.result()

    # --- for whoever drives it ---

    @property
    def losses(self) -> list[float]:
        return self._losses

    @property
    def loss(self) -> int:
        """Which of a step's values is the loss."""
        return self._loss

    def expect(self, values: Sequence[str]) -> None:
        """What a step gives: the loss and metrics of these names."""
        if not self._names:
            self._names = tuple(values)
            self._loss = self._names.index("loss") if "loss" in values else 0
            self._metrics = {
                name: [] for i, name in enumerate(values) if i != self._loss
            }

    def record(self, columns: Sequence[Sequence[float]]) -> None:
        """More steps have ended: each value of all of them."""
        for i, (name, column) in enumerate(zip(self._names, columns, strict=True)):
            into = self._losses if i == self._loss else self._metrics[name]
            into.extend(column)

    def report(self, epoch: int) -> None:
        """Tells those who iterate about the last step."""
        self._epoch = epoch
        now = time.monotonic()
        steps = len(self._losses)
        if steps == 0:
            return
        if steps > self._at_report:
            seconds = max(now - self._reported, 1e-9)
            self._rate = (steps - self._at_report) / seconds
            self._reported, self._at_report = now, steps
        self._latest = Progress(
            epoch,
            steps,
            self._total,
            self._losses[-1],
            {name: values[-1] for name, values in self._metrics.items()},
            self._validation,
            self._rate,
        )
        self._version += 1
        self._news.tell()

    def end_epoch(
        self, epoch: int, first: int, last: int, validation: dict[str, float]
    ) -> Epoch:
        """The steps [first, last) were an epoch, or what this run had of it."""
        self._validation = validation

        def mean(values: list[float]) -> float:
            return math.fsum(values[first:last]) / (last - first)

        ended = Epoch(
            epoch,
            last - first,
            mean(self._losses),
            {name: mean(values) for name, values in self._metrics.items()},
            validation,
        )
        self._epochs.append(ended)
        return ended

    def history(self) -> History:
        return History(
            self._losses,
            self._metrics,
            self._epochs,
            time.monotonic() - self._began,
            self._stopped,
        )

    def stop(self) -> None:
        """No epoch follows."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        return self._stopped

    async def take_turn(self) -> None:
        """Returns once the run is not paused, and it is its turn."""
        while True:
            while self._paused:
                await self._moved.wait()
            await self._turns.take()
            if not self._paused:
                break
            self._turns.leave()
        self._in_turn = True

    def leave_turn(self) -> None:
        """Its turn is over, if it has one: no step is under way."""
        if self._in_turn:
            self._in_turn = False
            self._turns.leave()
            self._moved.tell()

    async def at_rest(self) -> None:
        """Returns once it is paused and no step is under way, or it isn't any more."""
        while self._paused and self._in_turn:
            await self._moved.wait()

    def interrupt(self) -> None:
        """Ends the turn after the step under way."""
        if self._steps is not None:
            self._steps.stop()
        if self.take_back is not None:
            self.take_back()

    def make_way(self) -> None:
        """Ends the turn for somebody else's, once it has had a step."""
        if self._steps is not None:
            self._steps.stop(self._first + 1)

    async def run_steps(
        self, steps: Steps, priority: int, epoch_of: Callable[[int], int]
    ) -> None:
        """Runs what is left of the steps, to the end or to an interruption; in a turn.
        Whatever happens, no step is under way afterwards, and those that ended are
        recorded."""
        if self._paused:  # since the turn began
            return
        self._first = recorded = steps.done

        def record() -> None:
            nonlocal recorded
            if (done := steps.done) > recorded:
                self.record(steps.values(recorded, done))
                recorded = done
                self.report(epoch_of(done))

        self._steps = steps
        running = steps.start(priority)
        if self._turns.wanted:
            self.make_way()
        watch: Future[int] | None = None
        interval = 0.0
        try:
            while not running.done():
                wanted = _INTERVAL if self._listeners > 0 else _UNREAD_INTERVAL
                if watch is None or watch.done() or wanted < interval:
                    if watch is not None:
                        watch.cancel()
                    watch, interval = steps.watch(recorded, wanted), wanted
                await self._first_of(running, watch)
                if watch.done():
                    record()
        finally:
            steps.stop()
            cancelled = await settled(running)
            self._steps = None
            if watch is not None:
                watch.cancel()
            record()
            if not running.cancelled():
                running.exception()  # seen, also where a cancellation goes first
        running.result()
        if cancelled is not None:
            raise cancelled

    async def _first_of(self, running: Future[int], watch: Future[int]) -> None:
        """Returns when either is done, or when somebody begins to iterate."""
        self._listening = asyncio.get_running_loop().create_future()
        try:
            waiting: list[Any] = [running, self._listening, watch]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._listening.cancel()


class _Stillness:
    """What awaiting a pause waits for; nothing happens where nobody does."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, None, None]:
        return self._run.at_rest().__await__()


async def whole(future: Future[T], keep: Callable[[T], None] | None = None) -> T:
    """What a `call` gives that must not be left half done: once it has begun it is
    waited for, and a cancellation that came meanwhile is raised after that. `keep` gets
    the result in either case."""
    cancelled = None
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError as error:
        if withdraw(future):
            raise
        cancelled = error
        await settled(future)
        if future.exception() is not None:
            raise
    result = future.result()
    if keep is not None:
        keep(result)
    if cancelled is not None:
        raise cancelled
    return result


async def settled(
    future: Future[Any] | asyncio.Task[Any],
) -> asyncio.CancelledError | None:
    """Waits for the future, however often the task is cancelled meanwhile."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
