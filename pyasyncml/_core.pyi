"""The C half. `Future` and what `Model` inherits are public through `pyasyncml`."""

from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from types import GenericAlias
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from typing_extensions import CapsuleType

P = ParamSpec("P")
T = TypeVar("T")

class Future(Awaitable[T], Generic[T]):
    """The native awaitable: behaves as `asyncio.Future` wherever asyncio meets one.

    ``Future(loop=loop)`` makes one to be settled by hand, for tests and composition.
    """

    _asyncio_future_blocking: bool
    _log_traceback: bool
    _cancel_message: Any
    def __init__(self, *, loop: AbstractEventLoop | None = None) -> None: ...
    @property
    def _state(self) -> Literal["PENDING", "CANCELLED", "FINISHED"]: ...
    @property
    def _loop(self) -> AbstractEventLoop: ...
    @property
    def _callbacks(self) -> list[tuple[Callable[[Any], object], Context]] | None: ...
    @property
    def _result(self) -> Any: ...
    @property
    def _exception(self) -> BaseException | None: ...
    @property
    def _source_traceback(self) -> Any: ...
    def get_loop(self) -> AbstractEventLoop: ...
    def result(self) -> T: ...
    def exception(self) -> BaseException | None: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def set_result(self, result: T, /) -> None: ...
    def set_exception(
        self, exception: BaseException | type[BaseException], /
    ) -> None: ...
    def add_done_callback(
        self, fn: Callable[[Future[T]], object], /, *, context: Context | None = None
    ) -> None: ...
    def remove_done_callback(self, fn: Callable[[Future[T]], object], /) -> int: ...
    def _make_cancelled_error(self) -> BaseException: ...
    def __iter__(self) -> Generator[Any, None, T]: ...
    def __await__(self) -> Generator[Any, None, T]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

class Model:
    name: str
    _closing: int
    _finish: Callable[[Any], Any] | None
    def __init__(
        self,
        backend: CapsuleType,
        options: Any,
        *,
        name: str,
        path: str | None,
        entry: str | None,
        devices: tuple[tuple[int, int], ...],
        instances: int,
        threads: int,
        warmup_runs: int,
        spin_ns: int,
        max_rows: int,
        max_bytes: int,
        when_full: int,
        batching: tuple[Any, ...] | None,
        inline_ns: int,
    ) -> None: ...
    def infer(
        self,
        *inputs: Any,
        timeout: float | None = None,
        priority: int = 0,
        **named_inputs: Any,
    ) -> Future[Any]:
        """Run the model on the inputs: a `Future` of its outputs.

        Checked and enqueued at the call, not at the first ``await``; a future nobody
        awaits still runs.

        Inputs, by position or by the signature's names: anything with ``__dlpack__`` or
        the buffer protocol, numbers, strings, and tuples, lists and dicts of them where
        the model takes them. Memory is borrowed until the run ends, not copied: writing
        to it meanwhile gives this request garbage. Copied are buffers whose strides are
        no multiple of the item size, and lazily conjugated or negated torch views; a
        backend copies what its framework can't view (negative strides). Tensors that
        require grad are taken without their graph.

        Outputs are the caller's. All tensors torch: torch comes back; otherwise numpy
        (bfloat16 and float8 need ``ml_dtypes``); without numpy, objects with the buffer
        protocol and ``__dlpack__``.

        `timeout`: seconds from this call, the queue included; work that has not begun
        by then is not run. `priority`: larger is more urgent.

        Raises `TypeError` and `InputError` for inputs that don't fit, `ModelClosed`,
        and `RuntimeError` without a running loop. Through the future come `QueueFull`,
        `DeadlineExceeded`, `BackendError` and `OutOfMemory`.
        """

    def close(self, *, drain: bool = True) -> Future[None]:
        """Stop accepting requests: a `Future` that is done when the workers have ended.

        What was accepted is served first; with ``drain=False`` what waits fails with
        `ModelClosed`, and only what runs is waited for. May be called again, from any
        loop. Raises `RuntimeError` without a running loop.
        """

    @property
    def _described(
        self,
    ) -> tuple[str, tuple[Any, ...], tuple[Any, ...], int, int]: ...
    def _start(self, *example: Any) -> Future[Any]: ...
    def _start_pool(self) -> None: ...
    def _abort(self) -> None: ...
    def _swap(self, other: Model, /) -> None: ...
    def _call(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    def _withdraw(self, future: Future[Any], /) -> bool: ...
    def _run_direct(self, *inputs: Any) -> Any: ...
    def _stats(self) -> tuple[Any, ...]: ...
    def _health(self) -> tuple[Any, ...]: ...

class Session:
    def __init__(self, model: Model, states: dict[str, Any], /) -> None: ...
    def infer(
        self,
        *inputs: Any,
        timeout: float | None = None,
        priority: int = 0,
        **named_inputs: Any,
    ) -> Future[Any]:
        """Run the session's next request: a `Future` of the outputs but the states.

        As `Model.infer`, with the inputs that aren't state. Requests of a session run
        one after the other, in the order of these calls, whatever their priorities. One
        that is cancelled or expires before it runs leaves the state alone, and so does
        one that fails.
        """

    def reset(self) -> None:
        """What is submitted from now on starts from the first state again."""

    def close(self) -> None:
        """Free the state once what was submitted has run. May be called again."""

class Steps:
    def __init__(
        self,
        model: Model,
        arrays: tuple[Any, ...],
        order: Any,
        table: Any,
        columns: int,
        values: int,
        epoch_rows: int,
        batch_rows: int,
        steps: int,
        stop_when_not_finite: bool,
        loss: int = 0,
    ) -> None: ...
    @property
    def done(self) -> int: ...
    def start(self, priority: int = 0) -> Future[int]: ...
    def limit(self, steps: int, /) -> None: ...
    def stop(self, at: int = 0, /) -> None: ...
    def watch(self, seen: int, interval: float, /) -> Future[int]: ...
    def values(self, first: int, last: int, /) -> list[list[float]]: ...

class EchoScript:
    def __init__(
        self,
        delay: float = 0.0,
        busy: bool = False,
        delay_per_row: float = 0.0,
        in_flight: int = 0,
        polled: bool = False,
    ) -> None: ...
    def poison(self, value: float | None, /) -> None: ...
    def limit(self, rows: int, /) -> None: ...
    def hold(self) -> None: ...
    def release(self, runs: int | None, /) -> None: ...
    def fail(self, runs: int, memory: bool, message: str, /) -> None: ...
    def begun(self, runs: int, /) -> Future[None]: ...
    def seen(self) -> tuple[int, int, list[int]]: ...

class Hub: ...

class Tensor:
    """A model's output where numpy is absent: lends its memory."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(self, **kwargs: Any) -> CapsuleType: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

echo_backend: CapsuleType
echo_flights_backend: CapsuleType
python_backend: CapsuleType

def preload(path: str, /) -> None: ...
def backend_devices(
    backend: CapsuleType, /
) -> list[tuple[int, int, str, int, str]]: ...
def shut_down() -> None: ...
