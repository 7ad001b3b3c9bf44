"""A torch module's training step as the driver needs it (_program.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from .._call import call
from .._core import Steps
from .._tracing import at_rest, own_tensors
from .._weights import Copies, detach_models
from ..backends import parse_devices
from ..errors import BackendError, Error, InputError
from ..export._lower import lower, make_graph_model
from ..model import Model, started
from . import _data
from ._checkpoint import (
    load_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    take_checkpoint,
)
from ._devices import devices_of, generators, move
from ._optimizers import rules_of
from ._parallel import Replicas, check_loss
from ._program import numbers
from ._run import whole
from ._schedule import RealScheduler, Schedule, varying
from ._torch_evaluation import Mean, TracedEvaluation, trace_evaluation
from ._torch_step import TracedStep, check_options, trace_step

#: Batches of a validation that are submitted ahead.
_PREFETCH = 4
#: Graphs of one step, or of one evaluation, that are kept: each has a model, with a
#: thread of its own. Where batches of one size have one each, those used last stay.
_KEPT = 16


async def _served(
    graph_module: Any,
    bound: Mapping[str, torch.Tensor],
    names: Sequence[str],
    name: str,
    threads: int,
    **options: Any,
) -> Model:
    """A running model of a traced graph over live tensors."""
    graph = await call(lower, graph_module, bound=bound, names=names, **options)
    devices = parse_devices(graph.device)
    return await started(
        make_graph_model(graph, name=name, threads=threads, devices=devices)
    )


class TorchProgram:
    """One step of a module, its loss and its optimizer; see `Trainer`."""

    rows = None

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[..., Any],
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Any,
        scheduler_interval: Literal["epoch", "step"],
        clip_norm: float | None,
        accumulate: int,
        autocast: Any,
        seed: int,
        device: str | Sequence[str] | None,
        threads: int,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"module: expected a torch.nn.Module, got {type(module).__name__}"
            )
        check_options(loss, clip_norm, accumulate)
        rules_of(optimizer)
        real_scheduler = RealScheduler(optimizer, scheduler, scheduler_interval)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ValueError(f"threads: expected an int, 1 or more, got {threads!r}")
        modules = [m for m in (module, loss) if isinstance(m, torch.nn.Module)]
        homes = [] if device is None else devices_of(device)
        if len(homes) > 1:
            check_loss(loss)
        if homes:
            move(modules, optimizer, homes[0])
        first = next((p for m in modules for p in m.parameters()), torch.empty(0))
        self._generators = generators(homes or [first.device], seed)
        self._replicas = (
            Replicas(list(map(str, homes)), self._generators[1:])
            if len(homes) > 1
            else None
        )
        self._module = module
        self._loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._real_scheduler = real_scheduler
        self._interval = scheduler_interval
        self._options: dict[str, Any] = {
            "clip_norm": clip_norm,
            "accumulate": accumulate,
            "autocast": autocast,
            "generator": self._generators[0],
            "varying": varying(scheduler),
            "replicas": self._replicas,
        }
        self._threads = threads
        self._first: TracedStep | None = None
        self._driving = False
        self._kinds: list[tuple[torch.dtype, int]] = []  # that it was traced with
        self._proved = False  # a step has ended
        # Those used last come last.
        self._models: dict[int, tuple[TracedStep, Model]] = {}  # by the step's id
        self._evaluations: list[tuple[TracedEvaluation, Model]] = []
        self.model: Model

    # --- the step ---

    @property
    def driving(self) -> bool:
        return self._driving

    @property
    def columns(self) -> int:
        assert self._first is not None
        return len(self._first.columns)

    @property
    def values(self) -> Sequence[str]:
        assert self._first is not None
        return self._first.outputs

    async def open(self, batch: tuple[Any, ...], idle: bool) -> None:
        tensors = _tensors(batch)
        kinds = [(tensor.dtype, tensor.dim()) for tensor in tensors]
        if idle and not self._proved and kinds != self._kinds:
            # The first batch there was may have been the wrong one.
            await self._close_models()
            if self._first is not None:
                self._first.close()
            self._first = None
            self._kinds = kinds
        elif idle and self._first and await _look(self._first.outdated) != "":
            await self._close_models()
            self._first.close()
            self._first = None
        if self._first is None:
            self._driving = True  # a model loaded from now on gets a copy too
            await detach_models(self._module)
            await whole(
                call(
                    trace_step,
                    self._module,
                    self._loss,
                    self._optimizer,
                    tensors,
                    **self._options,
                ),
                self._take,
            )
            assert self._first is not None
        elif idle and await _look(self._first.refresh):
            await self._close_models()
        step = self._first
        step.check(tensors)
        if not step.fits([tuple(tensor.shape) for tensor in tensors]):
            step = await whole(call(self._first.variant, tensors))
        if idle and self._replicas is not None:
            await self._replicate(self._first)
        _, model = self._models.pop(id(step), (step, None))
        if model is None:
            model = await _served(
                step.graph_module,
                step.bound,
                step.input_names,
                "training step",
                mutable=True,
                generator=self._generators,
                devices=() if self._replicas is None else self._replicas.devices,
                threads=self._threads,
            )
        self._models[id(step)] = step, model
        self.model = model
        while len(self._models) > _KEPT:
            # No step of its own is in flight: one model's are at a time.
            oldest, unused = self._models.pop(next(iter(self._models)))
            self._first.forget(oldest)
            await unused.close()

    async def _replicate(self, step: TracedStep) -> None:
        try:
            await whole(call(step.replicate))
        except RuntimeError as error:
            raise BackendError(
                f"the weights can't be copied to all devices: {error}"
            ) from error

    def _take(self, step: TracedStep) -> None:
        self._first = step

    def fits(self, shapes: Sequence[Sequence[int]]) -> bool:
        assert self._first is not None
        return self._first.fits(shapes)

    def schedule(self, per_epoch: int | None, step: int) -> _Rows:
        assert self._first is not None
        return _Rows(
            Schedule(self._first, self._scheduler, self._interval, per_epoch, step)
        )

    def advanced(self, steps: int, epochs: int) -> None:
        self._real_scheduler.advance(steps, epochs)
        # An epoch can end while somebody else's step is traced: there is none then.
        if steps > 0:
            assert self._first is not None
            self._proved = True
            self._first.sync(steps)

    def epoch_metric(self) -> bool:
        return self._real_scheduler.needs_metric

    def epoch_ended(self, metric: float) -> None:
        self._real_scheduler.advance_with(metric)

    # --- evaluation ---

    async def evaluate(
        self, data: _data.Arrays | _data.Batches, batch_size: int
    ) -> dict[str, float]:
        if isinstance(data, _data.Arrays):
            return await self._evaluate_arrays(data, min(batch_size, data.rows))
        return await self._evaluate_batches(data)

    async def _evaluation_of(
        self, batch: tuple[Any, ...]
    ) -> tuple[TracedEvaluation, Model]:
        tensors = _tensors(batch)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        for i, (traced, model) in enumerate(self._evaluations):
            if traced.shapes.fit(shapes):
                self._evaluations.append(self._evaluations.pop(i))
                return traced, model
        traced = await whole(
            call(
                trace_evaluation,
                self._module,
                self._loss,
                tensors,
                shapes[0][:1] != (1,),
            )
        )
        model = await _served(
            traced.graph_module,
            traced.bound,
            traced.input_names,
            "evaluation",
            threads=self._threads,
        )
        self._evaluations.append((traced, model))
        while len(self._evaluations) > _KEPT:
            await self._evaluations.pop(0)[1].close()
        return traced, model

    async def _evaluate_arrays(
        self, data: _data.Arrays, batch: int
    ) -> dict[str, float]:
        full = data.rows // batch
        first = tuple(array[:batch] for array in data.arrays)
        traced, model = await self._evaluation_of(first)
        mean = Mean(traced.outputs)
        steps = Steps(
            model,
            data.arrays,
            None,
            None,
            0,
            len(traced.outputs),
            full * batch,
            batch,
            full,
            False,
        )
        await steps.start()
        for row in zip(*steps.values(0, full), strict=True):
            mean.add(row, batch)
        if rest := data.rows - full * batch:
            last = tuple(array[full * batch :] for array in data.arrays)
            traced, model = await self._evaluation_of(last)
            mean.add(numbers(await model.infer(*last), len(traced.outputs)), rest)
        return mean.result()

    async def _evaluate_batches(self, data: _data.Batches) -> dict[str, float]:
        mean: Mean | None = None
        in_flight: deque[tuple[Any, int]] = deque()

        async def take_one() -> None:
            assert mean is not None
            future, rows = in_flight.popleft()
            mean.add(numbers(await future, len(names)), rows)

        names: Sequence[str] = ()
        try:
            async for batch in _data.batches(data, "validation"):
                traced, model = await self._evaluation_of(batch)
                names = traced.outputs
                mean = mean or Mean(names)
                in_flight.append((model.infer(*batch), int(batch[0].shape[0])))
                if len(in_flight) >= _PREFETCH:
                    await take_one()
            while in_flight:
                await take_one()
        finally:
            # Of an evaluation that failed or was cancelled: nobody asks for the rest.
            for future, _ in in_flight:
                future.cancel()
        if mean is None:
            raise InputError("validation: is empty, there are no batches")
        return mean.result()

    # --- keeping ---

    async def snapshot(
        self, position: dict[str, int]
    ) -> Callable[[str], Awaitable[None]]:
        checkpoint = await call(
            take_checkpoint,
            self._module,
            self._loss,
            self._optimizer,
            schedule=self._real_scheduler,
            step=self._first,
            generators=self._generators,
            position=position,
        )

        async def write(path: str) -> None:
            await call(save_checkpoint, path, checkpoint)

        return write

    async def restore(self, path: str) -> dict[str, int]:
        checkpoint = await call(load_checkpoint, path)
        position: dict[str, int] = await call(
            restore_checkpoint,
            checkpoint,
            self._module,
            self._loss,
            self._optimizer,
            schedule=self._real_scheduler,
            step=self._first,
            generators=self._generators,
        )
        return position

    async def state(self) -> Any:
        raise Error("state: it is in the module and the optimizer: their state_dict()")

    async def weights(self) -> Copies:
        return await call(Copies, self._module)

    async def _close_models(self) -> None:
        models = [model for _, model in (*self._models.values(), *self._evaluations)]
        self._models.clear()
        self._evaluations.clear()
        # All have begun before one is waited for: a cancellation leaves none open.
        for closing in [model.close() for model in models]:
            await closing

    async def close(self) -> None:
        await self._close_models()


T = TypeVar("T")


async def _look(at: Callable[[], T]) -> T:
    """What it gives, of what looks at the module's tensors: at once, or from a worker
    where somebody traces now."""
    if own_tensors.acquire(blocking=False):
        try:
            return at()
        finally:
            own_tensors.release()
    return await whole(call(at_rest(at)))


class _Rows:
    """The numbers that a step takes, row by row."""

    def __init__(self, schedule: Schedule) -> None:
        self.constant = schedule.constant
        self._rows = schedule.rows()

    def take(self, steps: int) -> Any:
        if self.constant:
            return np.tile(np.array(next(self._rows)), (steps, 1))
        return np.array([next(self._rows) for _ in range(steps)], dtype=np.float64)


def _tensors(batch: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """The batch as torch has it; for its dtypes and shapes."""
    try:
        return tuple(torch.as_tensor(item) for item in batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"batch: expected tensors or arrays: {error}") from error
