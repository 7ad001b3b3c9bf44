"""The model: what `load` gives and what is awaited."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
)
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _core, _map
from .batching import Batching, describe
from .errors import Error, LoadError, ModelClosed, ReloadUnderWay

if TYPE_CHECKING:
    from ._weights import Live
    from .backends.xla import Bundle
    from .training import Trainer

M = TypeVar("M", bound="Model")

# The order of enum paml_kind in csrc/engine/value.h.
_KINDS = (
    "None",
    "tensor",
    "bool",
    "int",
    "float",
    "str",
    "bytes",
    "tuple",
    "list",
    "dict",
    "object",
)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model, as far as its format states it.

    `name` is None where inputs have no names. `kinds` are the Python kinds accepted
    ("tensor", "int", "list", …). `dtype` is a name like "float32", None for any.
    `shape` has None for sizes that may vary, and is None where the rank may. `type` is
    the framework's own word for it.
    """

    name: str | None
    type: str | None
    kinds: tuple[str, ...]
    dtype: str | None
    shape: tuple[int | None, ...] | None
    optional: bool


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    `variadic`: any number of inputs, by position. `stateful`: the program itself keeps
    state from one run to the next, in each instance; it serves one stream an instance.
    """

    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variadic: bool
    stateful: bool


# The order of enum paml_when_full in csrc/engine/queue.h.
_WHEN_FULL = ("wait", "reject", "drop_lowest")


@dataclass(frozen=True)
class Queue:
    """The bound of a model's queue, and what happens at it.

    `when_full="wait"` (the default): requests past `max_rows` wait natively, first come
    first served, up to `max_bytes` of inputs in all. `"reject"`: they fail with
    `QueueFull`. `"drop_lowest"`: the request of the lowest priority fails, of several
    the last to come. Past `max_bytes` requests fail in either case. Without batching a
    request counts as one row, and so does one of no rows with it.
    """

    max_rows: int = 1024
    max_bytes: int = 2**30
    when_full: Literal["wait", "reject", "drop_lowest"] = "wait"

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Queue: {name}: expected an int, 1 or more, got {value!r}"
                )
        if self.when_full not in _WHEN_FULL:
            raise ValueError(
                "Queue: when_full: expected 'wait', 'reject' or 'drop_lowest', got "
                f"{self.when_full!r}"
            )


@dataclass(frozen=True)
class InstanceStats:
    """What one instance has done, as `Stats` counts it; `busy` in seconds."""

    device: str
    runs: int
    rows: int
    requests: int
    failed: int
    busy: float


@dataclass(frozen=True)
class Stats:
    """A model's counters since it was made, and its latencies in seconds.

    `waiting` is rows that were accepted and haven't begun to run, `waiting_bytes` their
    inputs. It counts what is `parked` as well, the rows past `Queue.max_rows` that wait
    to be let into the queue (`when_full="wait"`): so it may exceed that bound by them.
    `running` is instances in a run at this moment; `wait` is time in the queue, `run`
    time in the backend, quantiles within an eighth; `waited` is the seconds that all
    requests have been in the queue together, `busy` seconds in the backend, one number
    an instance.

    `runs` of the backend served `rows` of `requests` in all. `inlined` of these were
    requests run where `infer` was called (`inline_below=`), a run each, for
    `inlined_seconds` together: not in the queue, nor in `busy`, `run` and `releases`,
    which are the instances'. `releases` says why runs began: "full", "drained"
    (an instance was free and nothing more was waiting), "delay" (`max_delay` had
    passed), "shape" (what waited besides was too long or too short), "deadline" (more
    rows would have made somebody late), "alone" (requests that don't share). Padded
    inputs had `cells` elements, `padding_cells` of them padding; `padding_waste` is
    that share. `cpu_held` of the process's `cpu_total` CPU tokens are taken, by
    whatever model. `instances` is what each of them did, in the order of `device=`.

    `submitted` leaves out what was `rejected` and what had expired at the call. A
    request given up after its run began counts as `cancelled` or `expired`, and may
    count as `completed` too, where the run served it all the same.

    A reload sets nothing back: what the versions did is added up.
    """

    backend: str
    devices: tuple[str, ...]
    submitted: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    rejected: int
    waiting: int
    waiting_bytes: int
    parked: int
    running: int
    waited: float
    wait_p50: float
    wait_p99: float
    run_p50: float
    run_p99: float
    busy: tuple[float, ...]
    runs: int
    rows: int
    requests: int
    releases: dict[str, int]
    inlined: int
    inlined_seconds: float
    cells: int
    padding_cells: int
    padding_waste: float
    cpu_held: int
    cpu_total: int
    instances: tuple[InstanceStats, ...]


#: So many failed runs in a row are no longer a matter of single requests.
_FAILING = 8


@dataclass(frozen=True)
class Health:
    """Whether the model can serve, and why not.

    `status`: "loading", "ready", "closing", "closed" or "failed" (`message` says why).
    `longest_run` and `oldest_wait` are ages in seconds of what runs and waits now:
    large ones mean that a run hangs or that the model can't keep up. `failing` is how
    many runs have failed since the last that didn't; `message` is then the last error.
    `lost` are the devices that have failed for good: their instances are out of
    service until a reload; with none left every request fails with a `BackendError`.
    """

    status: Literal["new", "loading", "ready", "closing", "closed", "failed"]
    message: str
    instances: int
    instances_alive: int
    longest_run: float
    oldest_wait: float
    failing: int
    lost: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Ready, with every instance alive, and not failing run after run."""
        return (
            self.status == "ready"
            and self.instances_alive == self.instances
            and not self.lost
            and self.failing < _FAILING
        )


def _specs(described: Iterable[tuple[Any, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name,
            type_,
            tuple(kind for i, kind in enumerate(_KINDS) if kinds >> i & 1),
            dtype,
            shape,
            bool(optional),
        )
        for name, type_, kinds, dtype, shape, optional in described
    )


class Model(_core.Model):
    """A loaded model. Made by `load`; belongs to the process, not to a loop.

    Any number of event loops and threads may share a model; each future belongs to the
    loop that called `infer`.
    """

    _backend_name: str
    _device_names: tuple[str, ...]
    _in_flight: int  # of map(), where it isn't told
    _reloading: threading.Lock
    #: Loads another source as this one was; None: it wasn't loaded from one.
    _load_again: Callable[[Any], Awaitable[Model]] | None = None
    #: Of a model over a live module.
    _live: Live | None = None
    #: Of a SavedModel: its folder.
    _folder: str | None = None
    #: Of a bundle of `export.jax`.
    _bundle: Bundle | None = None
    #: What `_finish` makes of the outputs, in words.
    _structure: str = ""

    @property
    def signature(self) -> Signature:
        """Names, kinds, dtypes and shapes of inputs and outputs."""
        entry, inputs, outputs, variadic, stateful = self._described
        return Signature(
            entry, _specs(inputs), _specs(outputs), bool(variadic), bool(stateful)
        )

    def stats(self) -> Stats:
        """Counters and latencies; see `Stats`."""
        *numbers, counts = self._stats()
        busy = numbers[15]
        instances = [
            InstanceStats(device, runs, rows, requests, failed, seconds)
            for device, (runs, rows, requests, failed), seconds in zip(
                self._instance_devices(len(busy)), counts, busy, strict=True
            )
        ]
        return Stats(
            *(self._backend_name, self._device_names, *numbers, tuple(instances))
        )

    def _instance_devices(self, instances: int) -> list[str]:
        each = instances // len(self._device_names)
        return [name for name in self._device_names for _ in range(each)]

    def health(self) -> Health:
        """Whether the model can serve; see `Health`."""
        status, message, alive, _, longest_run, oldest_wait, failing, lost = (
            self._health()
        )
        instances = len(self._stats()[15])
        devices = (
            device
            for device, is_lost in zip(
                self._instance_devices(instances), lost, strict=False
            )
            if is_lost
        )
        return Health(
            status,
            message,
            instances,
            alive,
            longest_run,
            oldest_wait,
            failing,
            tuple(dict.fromkeys(devices)),
        )

    def session(self, **state: Any) -> Session:
        """A stream of requests with state that stays native between them.

        `state`: the inputs that are state, by name, with the tensors that they start
        from (copied). The model gives the new states as the last items of the tuple
        that it returns, in the order of its inputs, or, of a dict, under the inputs'
        names; in the same shapes and dtypes. `Session.infer` gives what else there is.

        Any number of sessions may be open; their requests share runs where the model
        has `batching=`. A state's batch axis is 0 unless `Batching` says otherwise.

        A reload ends no session: what it has submitted is served by the program that it
        was submitted to, and the state goes on with the new one.

        Raises `InputError` for a name that is no input, or a state that is no tensor.
        """
        return Session(self, state)

    def map(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int | None = None,
        ordered: bool = True,
    ) -> AsyncGenerator[Any, None]:
        """The outputs for each item of `source`: an async iterator, with back-pressure.

        `source`: an iterable or async iterable of inputs; an item that is a tuple is
        several inputs. It is pulled when the iteration begins, and then only while
        fewer than `in_flight` requests are submitted and not yet handed out; by default
        that is twice the rows that all instances take at a time, and at least 16. An
        async source is awaited beside the requests, in a task of its own, and closed at
        the end.

        Outputs come in the order of the inputs, or as they complete with
        ``ordered=False``. What a request, its inputs or the source raises is raised in
        its place, and ends the iteration. What is outstanding is cancelled then, and
        where the iteration is left early: on cancellation, on ``aclose()``, and when
        the iterator is collected (at once only with `contextlib.aclosing`).

        Raises `TypeError` and `ValueError` for wrong arguments at the call.

        >>> import asyncio
        >>> from pyasyncml.testing import echo
        >>> async def main():
        ...     async with await echo() as model:
        ...         return [y async for y in model.map(range(5))]
        >>> asyncio.run(main())
        [0, 1, 2, 3, 4]
        """
        if in_flight is None:
            in_flight = self._in_flight
        return _map.results(self.infer, source, in_flight, ordered)

    async def reload(self, source: Any) -> None:
        """Serve another source of the same signature from now on, refusing nothing.

        `source` is what `load` takes (a file, a live module), and is loaded and warmed
        up as the first was: with the same example inputs, device, instances, threads,
        entry, batching and queue. A file's checksum is looked for beside it, since
        ``sha256=`` was the first file's. Meanwhile the model goes on; both programs are
        in memory until the old one has ended.

        The change is atomic: each request, and so each batch, sees the old program or
        the new one. Requests accepted before it are served by the old program, which
        then ends; the reload is over when it has. Cancelling the reload before the
        change leaves the model as it was; after it, the old program still serves what
        it has.

        Raises `LoadError` if the source doesn't load, fails in the warm-up or has
        another signature (it says what differs): the model goes on unchanged. Raises
        `ReloadUnderWay` while another reload hasn't come to its change, `ModelClosed`
        after ``close()``, and `TypeError` and `ValueError` as `load` does.
        """
        if self._load_again is None:
            raise Error(f"model {self.name!r} has no source: it can't be reloaded")
        if not self._reloading.acquire(blocking=False):
            raise ReloadUnderWay(
                f"model {self.name!r} is being reloaded already: await that first"
            )
        try:
            if self._closing:
                raise ModelClosed(f"model {self.name!r} is closed")
            other = await self._load_again(source)
            try:
                _check_same(self.signature, other.signature)
                self._replace(other)
            except BaseException:
                await other.close(drain=False)
                raise
            if self._live is not None:
                from ._weights import serve_live

                with contextlib.suppress(ModelClosed):
                    await serve_live(self)
        finally:
            self._reloading.release()
        await other.close()  # which has begun

    async def update_weights(self, trainer: Trainer) -> None:
        """Serve the trainer's weights as they are now, between two of its steps.

        For a model that was loaded from a live torch module with example inputs, from
        the SavedModel that the trainer was, or from a bundle of `export.jax` whose
        `weights` are part of the trainer's state, under the same keys. The weights are
        copied once, and
        swapped in between two batches: each request, and so each batch, sees the old
        ones or the new. Nothing is refused meanwhile, and a run of the trainer goes on.
        Over when the old weights are no longer used.

        Raises `Error` for a model of another kind, `ReloadUnderWay` while a reload or
        an update is, `LoadError` for weights of another module (this one goes on with
        what it has), and `ModelClosed`.
        """
        from ._weights import swap_weights

        if not self._reloading.acquire(blocking=False):
            raise ReloadUnderWay(
                f"model {self.name!r} is being reloaded or updated already: await that "
                "first"
            )
        try:
            if self._closing:
                raise ModelClosed(f"model {self.name!r} is closed")
            await swap_weights(self, await trainer._copy_weights())
        finally:
            self._reloading.release()

    def _replace(self, other: Model) -> None:
        """Changes programs with another model; what runs and waits goes along."""
        if self._structure != other._structure:
            raise LoadError(
                f"reload: the source gives its outputs as {other._structure}, instead "
                f"of {self._structure}; load it as a model of its own"
            )
        self._swap(other)
        self._finish = other._finish
        self._folder = other._folder
        self._live = other._live
        self._bundle = other._bundle
        self._backend_name, other._backend_name = (
            other._backend_name,
            self._backend_name,
        )

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(drain=exc_type is None)

    def __repr__(self) -> str:
        where = ", ".join(self._device_names)
        return (
            f"<{type(self).__name__} {self.name!r} {self._backend_name} on {where}: "
            f"{self._health()[0]}>"
        )


class Session(_core.Session):
    """A stream of requests to one model, made by `Model.session`.

    Belongs to the model's process, not to a loop; used by one task at a time, or by
    several that don't mind in which order their requests come.
    """

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _differences(
    what: str, old: tuple[TensorSpec, ...], new: tuple[TensorSpec, ...]
) -> list[str]:
    if len(old) != len(new):
        return [f"{len(new)} {what}s instead of {len(old)}"]
    found = []
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        title = f"{what} {i if a.name is None else repr(a.name)}"
        for field in ("name", "kinds", "dtype", "shape", "optional"):
            before, after = getattr(a, field), getattr(b, field)
            if before != after:
                found.append(f"{title}: {field} {after!r} instead of {before!r}")
    return found


def _check_same(old: Signature, new: Signature) -> None:
    """Raises `LoadError`, unless requests for the one are requests for the other."""
    found = []
    for field in ("entry", "variadic", "stateful"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            found.append(f"{field} {after!r} instead of {before!r}")
    found += _differences("input", old.inputs, new.inputs)
    found += _differences("output", old.outputs, new.outputs)
    if found:
        raise LoadError(
            f"reload: the source has another signature: {'; '.join(found)}; "
            "load it as a model of its own"
        )


def _spin_ns() -> int:
    """How long an idle worker may watch its queue: PYASYNCML_SPIN, in microseconds."""
    text = os.environ.get("PYASYNCML_SPIN", "100")
    try:
        microseconds = float(text)
        if not 0 <= microseconds <= 1e6:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"PYASYNCML_SPIN: expected microseconds, 0 to 1000000, got {text!r}"
        ) from None
    return int(microseconds * 1000) if len(os.sched_getaffinity(0)) > 1 else 0


def make_model(
    cls: type[Model],
    backend: str,
    capsule: Any,
    options: Any = None,
    *,
    name: str,
    path: str | None = None,
    entry: str | None = None,
    devices: tuple[tuple[str, tuple[int, int]], ...] = (("cpu", (1, 0)),),
    instances: int = 1,
    threads: int = 1,
    warmup_runs: int = 0,
    queue: Queue | None = None,
    batching: Batching | None = None,
    inline_below: float = 0.0,
) -> Model:
    """A model that isn't started yet."""
    queue = queue or Queue()
    model = cls(
        capsule,
        options,
        name=name,
        path=path,
        entry=entry,
        devices=tuple(device for _, device in devices),
        instances=instances,
        threads=threads,
        warmup_runs=warmup_runs,
        spin_ns=_spin_ns(),
        max_rows=queue.max_rows,
        max_bytes=queue.max_bytes,
        when_full=_WHEN_FULL.index(queue.when_full),
        batching=describe(batching),
        inline_ns=int(inline_below * 1e9),
    )
    model._backend_name = backend
    model._device_names = tuple(name for name, _ in devices)
    rows = batching.max_rows if batching is not None else 1
    model._in_flight = max(16, 2 * instances * len(devices) * rows)
    model._reloading = threading.Lock()
    return model


async def started(model: M) -> M:
    """The model once its instances are open; without one that fails to."""
    try:
        await model._start()
    except BaseException:
        model._abort()
        raise
    return model
