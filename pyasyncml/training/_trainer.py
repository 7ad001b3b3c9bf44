"""Training as an awaitable."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Literal

from .._weights import announce
from ..errors import Error, InputError, ModelClosed, ReloadUnderWay
from ..model import Model
from . import _bar, _data
from ._drive import Drive, batches_of, one_step, steps_per_epoch
from ._history import History
from ._plan import OnEpoch, Plan, rows_per_batch
from ._position import Position
from ._program import Program
from ._run import TrainingRun, settled
from ._turns import Turns


class Trainer:
    """Trains a live torch module, in place, on a native worker: ``await trainer.fit``.

    The whole step (forward, loss, backward, optimizer) is traced once, at the first
    step, into one graph over the module's own parameters and buffers and the
    optimizer's own state; from then on no Python runs between two steps over arrays.
    After an await the module is trained and ``optimizer.state_dict()`` is right: go on
    in plain PyTorch, and back.

    One event loop at a time uses a trainer: its methods raise `RuntimeError` while a
    run, a step or a copy of the weights is under way on another.
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
        self._turns = Turns()
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
        the order of the rows. `device`: where they run, one; None: the CPU for a
        SavedModel, which "cuda:0" or the like puts on a GPU, and for a bundle "xla:0",
        the first that the plugin has. `threads`: intra-op threads of a step (of a
        SavedModel; XLA has threads of its own).

        Batches are the entry's inputs, in its order. A bundle's have the shapes that it
        was exported for: `batch_size` is theirs, and data in arrays is cut into whole
        batches. What is trained stays on the device; `state` gives a copy. Checkpoints
        of a SavedModel are folders of TensorFlow's own, ``tf.train.load_checkpoint(
        path)`` reads them, of a bundle one file each, which ``safetensors`` reads. A
        model loaded from the same folder, or from a bundle whose weights are part of
        the step's state, gets them by `Model.update_weights`.

        Raises `LoadError` where it can't be loaded, not on that device, or trains
        nothing, and `TypeError` and `ValueError` for wrong arguments.
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
            steps = epochs * steps_per_epoch(source.rows, plan.batch)
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
            if (per_epoch := batches_of(source)) is not None:
                steps = epochs * per_epoch
        self._begin(epochs)
        run = TrainingRun(steps, self._turns)
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
            await Drive(self._program, position, self._turns, run, plan).fit(source)
        position.epochs = position.epoch - position.begin  # where it was stopped
        return run.history()

    # --- between two steps ---

    @contextlib.asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """No step is under way inside, one at a time is in here; a run goes on
        afterwards."""
        self._check_open()
        run = self._run
        if run is not None and not run.done():
            if run.loop is not asyncio.get_running_loop():
                raise RuntimeError(
                    "the trainer's run is under way on another event loop"
                )
            make_way = run.make_way
        else:
            make_way = _nobody
        async with self._turns.between(make_way):
            self._check_open()
            yield

    async def step(self, *batch: Any) -> dict[str, float]:
        """One step on one batch, as plain numbers: ``{"loss": …}`` and the metrics.

        `batch`: the module's inputs and the target, each a tensor or array with rows
        along axis 0. While a run is under way it comes between two steps of that.

        Raises `InputError` for what the module or the loss doesn't take.
        """
        async with self._still():
            self._turns.changes += 1
            await self._program.open(batch, idle=True)
            values, cancelled = await one_step(self._program, batch, 0, epochs=0)
        if cancelled is not None:
            raise cancelled
        return dict(zip(self._program.values, values, strict=True))

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
        async with self._turns.between(_nobody):  # a step that has begun ends first
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


def _nobody() -> None:
    """There is no run to make way."""
