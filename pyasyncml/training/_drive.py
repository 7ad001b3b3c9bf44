"""What `fit` does: a run's turns, one after the other, over arrays or over batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from .._call import call
from .._core import Future, Steps
from ..errors import BackendError, InputError
from . import _data
from ._ahead import Table
from ._plan import Plan
from ._position import Position
from ._prefetch import Prefetch
from ._program import Program, Schedule, numbers
from ._run import TrainingRun, settled
from ._turns import Turns

Order = np.ndarray[Any, np.dtype[np.int64]]

#: Rows whose order is drawn at a time: as many epochs as that holds run without Python.
_ROWS_AHEAD = 1 << 18
#: Steps whose values are kept natively at a time.
_STEPS_AHEAD = 1 << 18
#: Epochs that run without Python, at most, and whose ends are seen to in one go after.
_EPOCHS_AHEAD = 1024
_ENDS_AT_ONCE = 64


class Drive:
    """Drives a run from the position on."""

    def __init__(
        self,
        program: Program,
        position: Position,
        turns: Turns,
        run: TrainingRun,
        plan: Plan,
    ) -> None:
        self._program = program
        self._position = position
        self._turns = turns
        self._run = run
        self._plan = plan

    async def fit(self, source: _data.Arrays | _data.Batches) -> None:
        """To the end, or until the run is stopped."""
        while self._position.interrupted and not self._run.stopped:
            if isinstance(source, _data.Arrays):
                await self._fit_arrays(source)
            else:
                await self._fit_batches(source)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        await self._run.take_turn()
        try:
            yield
        finally:
            self._run.leave_turn()

    async def _open(self, batch: tuple[Any, ...]) -> None:
        """The program for batches like this one, in a turn before any step of it. What
        is changed in a pause meanwhile counts too."""
        changes = None
        while changes != self._turns.changes:
            changes = self._turns.changes
            await self._program.open(batch, idle=True)

    # --- arrays: the worker goes from step to step by itself ---

    async def _fit_arrays(self, source: _data.Arrays) -> None:
        """As many epochs as need nothing from Python in between, or one."""
        run, plan, position = self._run, self._plan, self._position
        per_epoch = steps_per_epoch(source.rows, plan.batch)
        async with self._turn():
            await self._open(_rows(source, slice(plan.batch)))
        run.expect(self._program.values)
        if position.step >= per_epoch:
            raise InputError(
                f"data: the run that was restored stood at step {position.step} of an "
                f"epoch, which has {per_epoch} steps with this data"
            )
        first, began = position.step, position.epoch
        epochs = 1
        if not (
            first
            or self._last_apart(source)
            or plan.epoch_ends
            or self._program.epoch_metric()
        ):
            epochs = max(1, min(_ROWS_AHEAD // source.rows, _STEPS_AHEAD // per_epoch))
            left = position.begin + position.epochs - began
            epochs = min(epochs, _EPOCHS_AHEAD, left)
        order = await call(self._order, source.rows, epochs)
        epoch_from = len(run.losses)
        while (epoch := position.epoch - began) < epochs:
            done = epoch * source.rows + position.step * plan.batch
            await self._fit_stretch(source, order[done:], epochs - epoch)
        for epoch in range(epochs):
            last = epoch_from + per_epoch - (first if epoch == 0 else 0)
            await self._end_epoch(began + epoch - position.begin, epoch_from, last)
            epoch_from = last
            if (epoch + 1) % _ENDS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _last_apart(self, source: _data.Arrays) -> int:
        """How many rows the last batch has, if it is too small for the others' graph;
        else 0."""
        rest = source.rows % self._plan.batch
        shapes = [(rest, *array.shape[1:]) for array in source.arrays]
        return 0 if rest == 0 or self._program.fits(shapes) else rest

    async def _fit_stretch(
        self, source: _data.Arrays, order: Order, epochs: int
    ) -> None:
        """Steps from the position on, over the rows of `order` and in `epochs` epochs
        at most, the one under way included: as many as follow one another, unless
        somebody in between makes another program of it."""
        run, plan, position = self._run, self._plan, self._position
        per_epoch = steps_per_epoch(source.rows, plan.batch)
        batch = _rows(source, slice(plan.batch))
        first, began = position.step, position.epoch
        steps: Steps | None = None
        table: Table | None = None
        changes = n_steps = 0

        def epoch_of(done: int) -> int:
            return began - position.begin + (first + done - 1) // per_epoch

        while steps is None or steps.done < n_steps:
            async with self._turn():
                if steps is None or changes != self._turns.changes:
                    await self._open(batch)
                    schedule = self._program.schedule(per_epoch, position.step)
                if steps is None:
                    model, changes = self._program.model, self._turns.changes
                    rest = self._last_apart(source)
                    if rest and first == per_epoch - 1:
                        await self._fit_rest(source, order[:rest])
                        return
                    whole = epochs if first == 0 and not rest else 1
                    n_steps = whole * per_epoch - first - (rest > 0)
                    if schedule is not None:
                        table = Table(schedule, n_steps, self._program.columns)
                    steps = self._steps(source, order, table, n_steps)
                elif changes != self._turns.changes:
                    if self._program.model is not model:
                        return
                    changes = self._turns.changes
                    if table is not None and schedule is not None:
                        table.renew(schedule, steps.done)
                before = steps.done
                try:
                    async with (
                        contextlib.nullcontext()
                        if table is None
                        else table.kept_ahead(steps)
                    ):
                        await run.run_steps(steps, plan.priority, epoch_of)
                finally:
                    ended = (first + steps.done) // per_epoch
                    position.epoch = began + ended
                    position.step = (first + steps.done) % per_epoch
                    self._program.advanced(
                        steps.done - before, ended - (first + before) // per_epoch
                    )
            self._check_finite()

    def _steps(
        self, source: _data.Arrays, order: Order, table: Table | None, n_steps: int
    ) -> Steps:
        plan = self._plan
        rows = source.rows - self._position.step * plan.batch
        return Steps(
            self._program.model,
            source.arrays,
            order,
            None if table is None else table.rows,
            self._program.columns,
            len(self._program.values),
            min(rows, n_steps * plan.batch),
            plan.batch,
            n_steps,
            plan.stop_on_nan,
            self._run.loss,
        )

    async def _fit_rest(self, source: _data.Arrays, order: Order) -> None:
        """An epoch's last batch, in a step of its own; in a turn. Nothing, where the
        run is paused before it begins."""
        run, position = self._run, self._position
        batch = _rows(source, order)
        await self._open(batch)
        if run.paused:
            return
        values, cancelled = await one_step(
            self._program, batch, self._plan.priority, epochs=1
        )
        position.epoch += 1
        position.step = 0
        run.record([[value] for value in values])
        run.report(position.epoch - 1 - position.begin)
        if cancelled is not None:
            raise cancelled
        self._check_finite()

    def _order(self, rows: int, epochs: int) -> Order:
        """Which row comes when: of an epoch it depends on the seed and the epoch's
        number alone, so that an interrupted one can be gone on with."""
        if not self._plan.shuffle:
            return np.tile(np.arange(rows, dtype=np.int64), epochs)
        position = self._position
        return np.concatenate(
            [
                np.random.default_rng([position.seed, position.epoch + epoch])
                .permutation(rows)
                .astype(np.int64)
                for epoch in range(epochs)
            ]
        )

    # --- batches: submitted ahead, run in turn ---

    async def _fit_batches(self, source: _data.Batches) -> None:
        """One epoch."""
        run, position = self._run, self._position
        epoch_from = len(run.losses)
        puller = _data.Puller(source)
        ahead = Prefetch()
        run.take_back = ahead.take_back
        try:
            count = await self._fit_pulled(puller, ahead, batches_of(source))
        except BaseException:
            ahead.take_back()
            while ahead:
                await settled(ahead.first)
                with contextlib.suppress(Exception):
                    self._record(ahead)
            raise
        finally:
            run.take_back = None
            run.leave_turn()
            await puller.close()
        if count == 0:
            raise InputError("data: is empty, there are no batches")
        position.epoch += 1
        position.step = 0
        self._program.advanced(0, 1)
        await self._end_epoch(
            position.epoch - 1 - position.begin, epoch_from, len(run.losses)
        )

    async def _fit_pulled(
        self, puller: _data.Puller, ahead: Prefetch, per_epoch: int | None
    ) -> int:
        """All that the source gives: how many batches that was. Steps that end while it
        takes its time are recorded, and hold up nobody who waits for a turn."""
        run, program = self._run, self._program
        skip = self._position.step
        count = 0
        schedule: Schedule | None = None
        coming: asyncio.Future[Any] | None = None
        exhausted = False
        while True:
            while ahead and ahead.first.done():
                self._record(ahead)
            if not ahead:
                run.leave_turn()
            if coming is not None and coming.done():
                pulled, coming = coming.result(), None
                exhausted = pulled is None
                count += not exhausted
                if count > skip and not exhausted:
                    ahead.waiting.append(pulled)
            if ahead.waiting and self._may_submit(ahead):
                batch = ahead.waiting[0]
                if ahead:
                    await program.open(batch, idle=False)
                    # Meanwhile what was in flight may have been taken back.
                    may = ahead.waiting[0] is batch and self._may_submit(ahead)
                    if may and ahead.model is not program.model:
                        await asyncio.wait([ahead.first])
                        may = False
                else:
                    await run.take_turn()
                    await self._open(batch)
                    run.expect(program.values)
                    schedule = program.schedule(per_epoch, self._position.step)
                    may = not run.paused
                if may:
                    future = submit(program, batch, schedule, self._plan.priority)
                    ahead.submitted(program.model, future)
                continue
            if not ahead.waiting and coming is None and not exhausted:
                coming = puller.ask()
            awaited: list[Any] = [ahead.first] if ahead else []
            if coming is not None:
                awaited.append(coming)
            if not awaited:
                return count
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)

    def _may_submit(self, ahead: Prefetch) -> bool:
        """Each turn has a step; more only where nobody waits for its end."""
        return not ahead or (
            len(ahead) < self._plan.prefetch
            and not self._run.paused
            and not ahead.interrupted
            and not self._turns.wanted
        )

    def _record(self, ahead: Prefetch) -> None:
        """The step that ended first."""
        row = ahead.pop().result()
        values = numbers(row, len(self._program.values))
        self._run.record([[value] for value in values])
        self._position.step += 1
        self._program.advanced(1, 0)
        self._run.report(self._position.epoch - self._position.begin)
        self._check_finite()

    # --- after an epoch ---

    async def _end_epoch(self, epoch: int, first: int, last: int) -> None:
        run, plan = self._run, self._plan
        if last == first:
            return
        validation: dict[str, float] = {}
        if plan.validation is not None:
            # Tracing it puts other tensors into the module for a while, and what is
            # measured is one moment's weights.
            async with self._turn():
                assert self._program.evaluate is not None  # fit() has looked
                validation = await self._program.evaluate(plan.validation, plan.batch)
        ended = run.end_epoch(epoch, first, last, validation)
        if self._program.epoch_metric():
            self._program.epoch_ended(validation.get("loss", ended.loss))
        if plan.validation is not None:
            run.report(epoch)
        if plan.on_epoch is not None and await plan.on_epoch(ended):
            run.stop()

    def _check_finite(self) -> None:
        losses, position = self._run.losses, self._position
        if self._plan.stop_on_nan and losses and not np.isfinite(losses[-1]):
            raise BackendError(
                f"the loss is {losses[-1]} after step {len(losses)} of the run "
                f"(epoch {position.epoch - position.begin}): training has diverged, "
                "or the data holds values that aren't finite (fit(stop_on_nan=False) "
                "goes on)"
            )


# --- one step ---


async def one_step(
    program: Program, batch: tuple[Any, ...], priority: int, epochs: int
) -> tuple[list[float], asyncio.CancelledError | None]:
    """A step by itself of the program that is open, in a turn: what it gave, and a
    cancellation that came while it ran; one that came before is raised, and no step is
    done."""
    future = submit(program, batch, program.schedule(None, 0), priority)
    cancelled = None
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError as error:
        if program.model._withdraw(future):
            raise
        await settled(future)
        cancelled = error
    values = numbers(future.result(), len(program.values))
    program.advanced(1, epochs)
    return values, cancelled


def submit(
    program: Program, batch: tuple[Any, ...], schedule: Schedule | None, priority: int
) -> Future[Any]:
    """A step of the program that is open."""
    rates = () if schedule is None else schedule.take(1)[0]
    return program.model.infer(
        *(np.array(rate) for rate in rates), *batch, priority=priority
    )


# --- sizes ---


def steps_per_epoch(rows: int, batch: int) -> int:
    return -(-rows // batch)


def batches_of(source: Any) -> int | None:
    """How many the source says that it has; None: it doesn't."""
    try:
        return len(source)
    except TypeError:
        return None


def _rows(source: _data.Arrays, which: Any) -> tuple[Any, ...]:
    return tuple(array[which] for array in source.arrays)
