"""Training as an awaitable."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np

from .._call import call
from .._core import Future, Steps
from .._weights import announce
from ..errors import BackendError, Error, InputError, ModelClosed, ReloadUnderWay
from ..model import Model
from . import _bar, _data
from ._ahead import Table
from ._history import History
from ._plan import OnEpoch, Plan, rows_per_batch
from ._position import Position
from ._program import Program, Schedule, numbers
from ._run import TrainingRun, settled

Order = np.ndarray[Any, np.dtype[np.int64]]

#: Rows whose order is drawn at a time: as many epochs as that holds run without Python.
_ROWS_AHEAD = 1 << 18
#: Steps whose values are kept natively at a time.
_STEPS_AHEAD = 1 << 18


class Trainer:
    """Trains a live torch module, in place, on a native worker: ``await trainer.fit``.

    The whole step (forward, loss, backward, optimizer) is traced once, at the first
    step, into one graph over the module's own parameters and buffers and the
    optimizer's own state; from then on no Python runs between two steps over arrays.
    After an await the module is trained and ``optimizer.state_dict()`` is right: go on
    in plain PyTorch, and back.
    """

    def __init__(
        self,
        module: Any,
        *,
        loss: Callable[..., Any],
        optimizer: Any,
        scheduler: Any = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        clip_norm: float | None = None,
        accumulate: int = 1,
        autocast: Any = None,
        seed: int | None = None,
        device: str | Sequence[str] | None = None,
        threads: int = 1,
    ) -> None:
        """`loss`: any callable, ``loss(module(*inputs), target)``, or ``loss(module,
        *batch)`` where its first parameter is named ``module`` or ``model``; a scalar
        tensor, or one and a dict of scalar tensors, the metrics.
        `optimizer`: SGD, Adam, AdamW, RMSprop or Adagrad of torch.optim, over the
        module's parameters; fastest with ``fused=True``.
        `scheduler`: of torch.optim.lr_scheduler, stepped after each epoch, or each step
        with ``scheduler_interval="step"``; one that follows a metric gets the loss of
        the validation, or of the epoch.
        `clip_norm`: the gradients' norm at most. `accumulate`: a batch is cut into so
        many parts, whose gradients are averaged. `autocast`: ``torch.bfloat16`` or a
        ``torch.autocast``. `seed`: of the order of the rows and of dropout; None: a
        new one. `device`: where the module is trained, "cuda:0" or the like: it is
        moved there, as ``module.to(device)`` does, with a loss that is a module; None:
        where its parameters are. Arrays come from host memory; batches of `step` and of
        iterables may lie on the device. `threads`: intra-op threads of a step.

        ``device=["cuda:0", "cuda:1"]`` trains data-parallel: the module on the first
        device and a replica on each of the others, each with its share of a batch's
        rows (axis 0 of every tensor that has one). Their gradients are averaged,
        weighted by rows, before they are clipped and every replica makes the same step;
        loss and metrics are averaged in the same way. The result is that of the whole
        batch where the loss is a mean over the batch's rows, which is assumed; one that
        says that it is a sum is refused. `accumulate` cuts each device's rows. Batch
        norm sees its device's rows, as in ``torch.nn.DataParallel``, and its running
        statistics are the first device's; dropout draws other numbers on each. The
        validation runs on the first device, and batches that lie on one must be there.

        The module is in the mode (train or eval) that it is in. One trainer at a time
        drives a module; models loaded from it serve copies from then on
        (`Model.update_weights`).

        Raises `TypeError` and `ValueError` for what isn't supported, and `Error` where
        another trainer drives the module.
        """
        from ._torch_program import TorchProgram

        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        program = TorchProgram(
            module,
            loss,
            optimizer,
            scheduler=scheduler,
            scheduler_interval=scheduler_interval,
            clip_norm=clip_norm,
            accumulate=accumulate,
            autocast=autocast,
            seed=seed,
            device=device,
            threads=threads,
        )
        self._init(program, seed)
        announce(module, self)

    def _init(self, program: Program, seed: int) -> None:
        self._program = program
        self._position = Position(seed)
        self._resuming = False
        self._run: TrainingRun | None = None
        self._busy = False  # a step may be under way
        self._holds = 0  # of those who need it not to be
        self._idle: set[asyncio.Future[None]] = set()
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._closed = False

    @classmethod
    async def load(
        cls,
        source: Any,
        *,
        entry: str = "train_step",
        seed: int | None = None,
        device: str | None = None,
        threads: int = 1,
    ) -> Trainer:
        """Train an exported training step: ``await Trainer.load(…)``.

        `source`: a SavedModel's folder, as `export.tensorflow` writes it with a loss
        and an optimizer, or a bundle of ``export.jax(step, …, state=…)``, whose
        ``step(state, *batch)`` gives the new state and the loss, or a flat dict or
        tuple of numbers with it. `entry`: the function whose runs are steps. `seed`: of
        the order of the rows. `device`: None: the CPU for a SavedModel; for a bundle
        "xla:0", the first that the plugin has. `threads`: intra-op threads of a step
        (of a SavedModel; XLA has threads of its own).

        Batches are the entry's inputs, in its order. A bundle's have the shapes that it
        was exported for: `batch_size` is theirs, and data in arrays is cut into whole
        batches. What is trained stays on the device; `state` gives a copy. Checkpoints
        of a SavedModel are folders of TensorFlow's own, ``tf.train.load_checkpoint(
        path)`` reads them, of a bundle one file each, which ``safetensors`` reads. A
        model loaded from the same folder, or from a bundle whose weights are part of
        the step's state, gets them by `Model.update_weights`.

        Raises `LoadError` where it can't be loaded, or trains nothing, `TypeError` and
        `ValueError` for a wrong device.
        """
        from ._exported import load_program

        program = await load_program(source, entry, device, threads)
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        return cls._of(program, seed)

    @classmethod
    def _of(cls, program: Program, seed: int = 0) -> Trainer:
        trainer = cls.__new__(cls)
        trainer._init(program, seed)
        return trainer

    # --- fit ---

    def fit(
        self,
        data: Any,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        validation: Any = None,
        progress: bool = False,
        on_epoch: OnEpoch | None = None,
        stop_on_nan: bool = False,
        priority: int = 0,
        prefetch: int = 4,
        publish: Model | Sequence[Model] = (),
        publish_every: int = 100,
    ) -> TrainingRun:
        """Train: a `TrainingRun`, under way at once; await it for its `History`.

        `data`: a tuple of arrays of one length (numpy or torch, the targets last), not
        copied, in batches of `batch_size` rows (32 by default) and in a new order each
        epoch, drawn from the trainer's seed (``shuffle=False``: as they are); a torch
        ``DataLoader`` or another iterable or async iterable of batches, each a tuple,
        pulled on a worker, with up to `prefetch` batches submitted ahead.

        `validation`: data as well, evaluated after each epoch in the module's
        evaluation mode (exported steps can't). `on_epoch`: an async callable, awaited
        after each epoch with its `Epoch`; what it returns, if it is true, ends the run
        (early stopping).
        `progress`: a tqdm bar, in terminals and notebooks. `stop_on_nan`: a loss that
        is not finite ends the run with a `BackendError`. `priority`: of the steps,
        among what else this trainer is asked for. `publish`: models over the module
        that get its weights (`Model.update_weights`) about every `publish_every` steps,
        and in the end.

        After `restore` of a run that had not ended, the next `fit`, with the same data
        and arguments, does what was left of it.

        Raises `InputError` and `TypeError` for data that can't be used and `ValueError`
        for wrong numbers at the call, `Error` where another run is under way and for a
        validation that can't be; through
        the run come what the data raises, `InputError` for batches of the wrong shapes
        and `BackendError`. What is trained is then as after the last whole step.
        """
        models = [publish] if isinstance(publish, Model) else list(publish)
        for name, value in (
            ("epochs", epochs),
            ("prefetch", prefetch),
            ("publish_every", publish_every),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an int, 1 or more, got {value!r}")
        if batch_size is not None and (
            not isinstance(batch_size, int) or batch_size < 1
        ):
            raise ValueError(
                f"batch_size: expected an int, 1 or more, got {batch_size!r}"
            )
        source = _data.read(data)
        checked = None if validation is None else _data.read(validation, "validation")
        if checked is not None and self._program.evaluate is None:
            raise Error(
                "validation: an exported training step can't evaluate without "
                "training; serve the model beside it, give it the weights (publish=) "
                "and compare there (on_epoch=)"
            )
        self._check_open()
        if self._run is not None and not self._run.done():
            raise Error("a run of this trainer is under way: await or cancel it first")
        loop = asyncio.get_running_loop()
        bar = _bar.find() if progress else None
        plan = Plan(
            priority, prefetch, checked, on_epoch, stop_on_nan, models, publish_every
        )
        steps: int | None = None
        if isinstance(source, _data.Arrays):
            plan.batch = rows_per_batch(batch_size, source.rows, self._program.rows)
            plan.shuffle = shuffle is not False
            steps = epochs * _steps_per_epoch(source.rows, plan.batch)
        else:
            if batch_size is not None:
                raise ValueError("batch_size: this data comes in batches already")
            if shuffle:
                raise ValueError("shuffle: only arrays are shuffled here")
            if epochs > 1 and _data.is_one_pass(source):
                raise InputError(
                    "data: an iterator gives one epoch; pass what makes one anew, a "
                    "list or a DataLoader"
                )
            if (per_epoch := _length(source)) is not None:
                steps = epochs * per_epoch
        self._begin(epochs)
        run = TrainingRun(steps)
        self._run = run
        run._start(self._drive(run, source, plan))
        if bar is not None:
            run._bar = loop.create_task(_bar.show(bar, run))
        return run

    def _begin(self, epochs: int) -> None:
        position = self._position
        if self._resuming and position.interrupted:
            epochs = max(epochs, position.epoch - position.begin + 1)
        else:
            position.begin = position.epoch
            position.step = 0
        self._resuming = False
        position.epochs = epochs

    async def _drive(
        self, run: TrainingRun, source: _data.Arrays | _data.Batches, plan: Plan
    ) -> History:
        position = self._position
        async with self._publishing(run, plan):
            while position.interrupted and not run.stopped:
                if isinstance(source, _data.Arrays):
                    await self._fit_arrays(run, source, plan)
                else:
                    await self._fit_batches(run, source, plan)
        position.epochs = position.epoch - position.begin  # where it was stopped
        return run.history()

    # --- arrays: the worker goes from step to step by itself ---

    async def _fit_arrays(
        self, run: TrainingRun, source: _data.Arrays, plan: Plan
    ) -> None:
        """As many epochs as need nothing from Python in between, or one."""
        position = self._position
        per_epoch = _steps_per_epoch(source.rows, plan.batch)
        await self._open(run, tuple(array[: plan.batch] for array in source.arrays))
        model = self._program.model  # a step in between may open another
        run.expect(self._program.values)
        if position.step >= per_epoch:
            raise InputError(
                f"data: the run that was restored stood at step {position.step} of an "
                f"epoch, which has {per_epoch} steps with this data"
            )
        rest = source.rows % plan.batch
        # The last batch may be too small for the graph of the others.
        apart = rest > 0 and not self._program.fits(
            [(rest, *array.shape[1:]) for array in source.arrays]
        )
        first = position.step
        epochs = 1
        if not (apart or first or plan.epoch_ends or self._program.epoch_metric()):
            epochs = max(1, min(_ROWS_AHEAD // source.rows, _STEPS_AHEAD // per_epoch))
            epochs = min(epochs, position.begin + position.epochs - position.epoch)
        order = await call(self._order, source.rows, epochs, plan)
        epoch_from = len(run.losses)
        began = position.epoch
        if (n_steps := epochs * per_epoch - first - apart) > 0:
            await self._fit_steps(run, source, plan, model, order, n_steps, per_epoch)
        if apart:
            await self._fit_rest(run, source, plan, order, rest)
        for epoch in range(epochs):
            last = epoch_from + per_epoch - (first if epoch == 0 else 0)
            await self._end_epoch(
                run, plan, began + epoch - position.begin, epoch_from, last
            )
            epoch_from = last

    async def _open(self, run: TrainingRun, batch: tuple[Any, ...]) -> None:
        """Makes the program ready. Tracing puts other tensors into the module for a
        while: nobody may look at it meanwhile, as during a step."""
        await run.gate(lambda: self._holds == 0)
        self._busy = True
        try:
            await self._program.open(batch, idle=True)
        finally:
            self._rest()

    async def _fit_steps(
        self,
        run: TrainingRun,
        source: _data.Arrays,
        plan: Plan,
        model: Model,
        order: Order,
        n_steps: int,
        per_epoch: int,
    ) -> None:
        """So many steps from the position on."""
        position = self._position
        first, began = position.step, position.epoch
        skip = first * plan.batch
        schedule = self._program.schedule(per_epoch, first)
        table = (
            None
            if schedule is None
            else Table(schedule, n_steps, self._program.columns)
        )
        steps = Steps(
            model,
            source.arrays,
            order[skip:],
            None if table is None else table.rows,
            self._program.columns,
            len(self._program.values),
            min(source.rows - skip, n_steps * plan.batch),
            plan.batch,
            n_steps,
            plan.stop_on_nan,
            run.loss,
        )

        def epoch_of(done: int) -> int:
            return began - position.begin + (first + done - 1) // per_epoch

        while steps.done < n_steps:
            await run.gate(lambda: self._holds == 0)
            before = steps.done
            self._busy = True
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
                try:
                    self._program.advanced(
                        steps.done - before, ended - (first + before) // per_epoch
                    )
                finally:
                    self._rest()
            _check_finite(run, plan, position)

    async def _fit_rest(
        self,
        run: TrainingRun,
        source: _data.Arrays,
        plan: Plan,
        order: Order,
        rows: int,
    ) -> None:
        """An epoch's last batch, in a step of its own."""
        position = self._position
        last = order[source.rows - rows : source.rows]
        await run.gate(lambda: self._holds == 0)
        self._busy = True
        try:
            batch = tuple(array[last] for array in source.arrays)
            values, cancelled = await self._one_step(batch, plan.priority, epochs=1)
            position.epoch += 1
            position.step = 0
            run.record([values])
            run.report(position.epoch - 1 - position.begin)
        finally:
            self._rest()
        if cancelled is not None:
            raise cancelled
        _check_finite(run, plan, position)

    def _order(self, rows: int, epochs: int, plan: Plan) -> Order:
        """Which row comes when: of an epoch it depends on the seed and the epoch's
        number alone, so that an interrupted one can be gone on with."""
        if not plan.shuffle:
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

    async def _fit_batches(
        self, run: TrainingRun, source: _data.Batches, plan: Plan
    ) -> None:
        """One epoch."""
        position = self._position
        epoch_from = len(run.losses)
        skip = position.step
        in_flight: deque[Future[Any]] = deque()
        schedule = None
        count = 0

        def record_first() -> None:
            row = in_flight.popleft().result()
            run.record([numbers(row, len(self._program.values))])
            position.step += 1
            self._program.advanced(1, 0)
            run.report(position.epoch - position.begin)
            _check_finite(run, plan, position)

        async def next_batch() -> tuple[Any, ...] | None:
            """The source's next. Steps that end meanwhile are recorded: a source that
            takes its time holds up nobody who waits for the step under way."""
            coming = puller.ask()
            while not coming.done():
                await asyncio.wait(
                    [coming, *itertools.islice(in_flight, 1)],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                while in_flight and in_flight[0].done():
                    record_first()
                if not in_flight:
                    self._rest()
            batch: tuple[Any, ...] | None = coming.result()
            return batch

        puller = _data.Puller(source)
        try:
            while (batch := await next_batch()) is not None:
                count += 1
                if count <= skip:
                    continue
                while in_flight and (
                    len(in_flight) >= plan.prefetch or run.paused or self._holds > 0
                ):
                    await asyncio.wait([in_flight[0]])
                    record_first()
                if in_flight:
                    await self._program.open(batch, idle=False)
                else:
                    self._rest()
                    await self._open(run, batch)
                    run.expect(self._program.values)
                    schedule = self._program.schedule(_length(source), position.step)
                # Nobody had a chance to open the program for another batch since.
                self._busy = True
                in_flight.append(self._submit(batch, schedule, plan.priority))
            while in_flight:
                await asyncio.wait([in_flight[0]])
                record_first()
        except BaseException:
            while in_flight and self._program.model._withdraw(in_flight[-1]):
                in_flight.pop()
            for future in list(in_flight):
                await settled(future)
                with contextlib.suppress(Exception):
                    record_first()
            raise
        finally:
            self._rest()
            await puller.close()
        if count == 0:
            raise InputError("data: is empty, there are no batches")
        position.epoch += 1
        position.step = 0
        self._program.advanced(0, 1)
        await self._end_epoch(
            run,
            plan,
            position.epoch - 1 - position.begin,
            epoch_from,
            len(run.losses),
        )

    async def _end_epoch(
        self, run: TrainingRun, plan: Plan, epoch: int, first: int, last: int
    ) -> None:
        if last == first:
            return
        validation: dict[str, float] = {}
        if plan.validation is not None:
            # Tracing it puts other tensors into the module for a while, and what is
            # measured is one moment's weights.
            await run.gate(lambda: self._holds == 0)
            self._busy = True
            try:
                assert self._program.evaluate is not None  # fit() has looked
                validation = await self._program.evaluate(plan.validation, plan.batch)
            finally:
                self._rest()
        ended = run.end_epoch(epoch, first, last, validation)
        if self._program.epoch_metric():
            self._program.epoch_ended(validation.get("loss", ended.loss))
        if plan.validation is not None:
            run.report(epoch)
        if plan.on_epoch is not None and await plan.on_epoch(ended):
            run.stop()

    # --- between two steps ---

    def _rest(self) -> None:
        self._busy = False
        for waiting in self._idle:
            if not waiting.done():
                waiting.set_result(None)

    @contextlib.asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """No step is under way inside, one at a time is in here; a run goes on
        afterwards."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._run is not None and not self._run.done() and self._run.loop != loop:
            raise RuntimeError("the trainer's run is under way on another event loop")
        self._holds += 1
        try:
            async with self._one_at_a_time():
                self._check_open()
                while self._busy:
                    if self._run is not None:
                        self._run.interrupt()
                    waiting = loop.create_future()
                    self._idle.add(waiting)
                    try:
                        await waiting
                    finally:
                        self._idle.discard(waiting)
                yield
        finally:
            self._holds -= 1
            if self._holds == 0 and self._run is not None:
                self._run.go_on()

    def _one_at_a_time(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        return self._lock[1]

    async def step(self, *batch: Any) -> dict[str, float]:
        """One step on one batch, as plain numbers: ``{"loss": …}`` and the metrics.

        `batch`: the module's inputs and the target, each a tensor or array with rows
        along axis 0. While a run is under way it comes between two steps of that.

        Raises `InputError` for what the module or the loss doesn't take.
        """
        async with self._still():
            values, cancelled = await self._one_step(batch, 0, epochs=0)
        if cancelled is not None:
            raise cancelled
        return dict(zip(self._program.values, values, strict=True))

    async def _one_step(
        self, batch: tuple[Any, ...], priority: int, epochs: int
    ) -> tuple[list[float], asyncio.CancelledError | None]:
        """A step by itself: what it gave, and a cancellation that came while it ran;
        one that came before is raised, and no step is done."""
        program = self._program
        await program.open(batch, idle=True)
        future = self._submit(batch, program.schedule(None, 0), priority)
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

    def _submit(
        self, batch: tuple[Any, ...], schedule: Schedule | None, priority: int
    ) -> Future[Any]:
        rates = () if schedule is None else schedule.take(1)[0]
        return self._program.model.infer(
            *(np.array(rate) for rate in rates), *batch, priority=priority
        )

    # --- keeping ---

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: what is trained, the optimizer's and the schedule's
        state, random numbers and the position in the data, as they are between two
        steps (a run goes on once they are copied).

        Atomic: a process that is killed meanwhile leaves the checkpoint that was there.
        Raises `OSError` where it can't be written.
        """
        async with self._still():
            write = await self._program.snapshot(self._position.as_dict())
        await write(os.fspath(path))

    async def restore(self, path: str | os.PathLike[str]) -> None:
        """Go back to a checkpoint; training continues from it bit by bit.

        Raises `LoadError` for a file that is damaged or that belongs to another
        program (it says what differs), with nothing changed; `Error` while a run is
        under way.
        """
        if self._run is not None and not self._run.done():
            raise Error("a run of this trainer is under way: await or cancel it first")
        async with self._still():
            # Whole or not at all, also where this is cancelled meanwhile.
            restoring = asyncio.get_running_loop().create_task(
                self._program.restore(os.fspath(path))
            )
            cancelled = await settled(restoring)
            self._position.restore(restoring.result())
            self._resuming = True
            if cancelled is not None:
                raise cancelled

    async def state(self) -> Any:
        """A copy of an exported step's state, as it is between two steps: arrays in the
        structure that it was exported with. For a bundle of `export.jax`.

        Raises `Error` for what has it elsewhere: a module and its optimizer, a
        SavedModel's checkpoint.
        """
        async with self._still():
            return await self._program.state()

    # --- giving to models ---

    @property
    def _driving(self) -> bool:
        return self._program.driving

    async def _copy_weights(self) -> Any:
        """As they are between two steps."""
        async with self._still():
            return await self._program.weights()

    async def _publish(self, run: TrainingRun, models: list[Model], every: int) -> None:
        last = 0
        async for progress in run:
            if progress.step - last >= every:
                last = progress.step
                for model in models:
                    # Somebody else's reload goes first; the next publish catches up.
                    # Nobody waits for the weights of a model that was closed.
                    with contextlib.suppress(ReloadUnderWay, ModelClosed):
                        await model.update_weights(self)

    @contextlib.asynccontextmanager
    async def _publishing(self, run: TrainingRun, plan: Plan) -> AsyncIterator[None]:
        """Inside, models get the weights every so many steps, and in the end."""
        if not plan.publish:
            yield
            return
        task = asyncio.get_running_loop().create_task(
            self._publish(run, plan.publish, plan.publish_every)
        )
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        for model in plan.publish:
            with contextlib.suppress(ModelClosed):
                await self._publish_last(model)

    async def _publish_last(self, model: Model) -> None:
        """What a fit ends with is served in the end, whoever else reloads meanwhile."""
        while True:
            try:
                return await model.update_weights(self)
            except ReloadUnderWay:
                await asyncio.sleep(0.01)  # it may belong to another loop

    # --- closing ---

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosed("the trainer is closed")

    async def close(self) -> None:
        """End the run, if there is one, and the worker. May be called again."""
        self._closed = True
        if self._run is not None and not self._run.done():
            if self._run.loop.is_closed():
                self._run.interrupt()  # nobody will ever go on with it
            else:
                self._run.cancel()
                await asyncio.wait([self._run._task])
        async with self._one_at_a_time():  # a step that has begun ends first
            await self._program.close()

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _steps_per_epoch(rows: int, batch: int) -> int:
    return -(-rows // batch)


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _check_finite(run: TrainingRun, plan: Plan, position: Position) -> None:
    if plan.stop_on_nan and run.losses and not np.isfinite(run.losses[-1]):
        raise BackendError(
            f"the loss is {run.losses[-1]} after step {len(run.losses)} of the run "
            f"(epoch {position.epoch - position.begin}): training has diverged, "
            "or the data holds values that aren't finite (fit(stop_on_nan=False) goes "
            "on)"
        )
