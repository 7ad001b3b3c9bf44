"""A model for tests: gives its inputs back, and does on the way what it is told.

Nothing in a test has to sleep: a gate holds runs inside the backend until the test lets
them go.

>>> import asyncio
>>> async def main():
...     async with await echo() as model:
...         model.hold()
...         future = model.infer(1.0)
...         await model.begun(1)           # the worker is inside the run
...         assert not future.done()
...         model.release()
...         return await future
>>> asyncio.run(main())
1.0
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from . import _core
from .batching import Batching
from .model import Model, Queue, make_model, started

__all__ = ["EchoModel", "echo"]


class EchoModel(Model):
    """A `Model` whose runs can be held, delayed and made to fail."""

    _script: _core.EchoScript
    _replaced: list[_core.EchoScript]  # of versions that may still be drained

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.release()  # a test that fails must not wait at its own gate
        await super().__aexit__(exc_type, exc, traceback)

    def hold(self) -> None:
        """Runs from now on wait at a gate inside the backend."""
        self._script.hold()

    def release(self, runs: int | None = None) -> None:
        """Let `runs` runs through the gate; None opens it for good, and the gates of
        versions that a reload has replaced."""
        self._script.release(runs)
        if runs is None:
            for script in self._replaced:
                script.release(None)

    def fail(
        self, runs: int = 1, message: str = "scripted failure", *, memory: bool = False
    ) -> None:
        """The next runs fail: `BackendError`, or `OutOfMemory` with `memory`."""
        self._script.fail(runs, memory, message)

    def poison(self, value: float | None) -> None:
        """Runs fail whose first input holds this number; None: none do any more."""
        self._script.poison(value)

    def limit_rows(self, rows: int) -> None:
        """Runs of more rows than these run out of memory; 0: none do."""
        self._script.limit(rows)

    def begun(self, runs: int) -> _core.Future[None]:
        """A `Future` that is done when `runs` runs in all have begun."""
        return self._script.begun(runs)

    @property
    def runs(self) -> int:
        """Runs begun so far."""
        return self._script.seen()[0]

    @property
    def seen(self) -> list[int]:
        """The rows of each run so far, the last 4096: of its first input's axis 0."""
        return self._script.seen()[2]

    async def reload(self, source: Any = None) -> None:
        """As `Model.reload`, with a new script in the place of a new program.

        It has the same delays, an open gate, and has seen no runs: `hold`, `fail`,
        `begun`, `seen` and the others act on it from the change on. `source` is not
        looked at, so that code under test may name its file.
        """
        script = self._script
        self._replaced.append(script)
        await super().reload(source)
        self._replaced.remove(script)

    def _replace(self, other: Model) -> None:
        super()._replace(other)
        assert isinstance(other, EchoModel)
        self._script, other._script = other._script, self._script

    def run_direct(self, *inputs: Any) -> Any:
        """The same conversions and the same run, blocking, in the calling thread."""
        return self._run_direct(*inputs)


async def echo(
    *,
    instances: int = 1,
    delay: float = 0.0,
    delay_per_row: float = 0.0,
    busy: bool = False,
    in_flight: int = 0,
    polled: bool = False,
    batching: Batching | None = None,
    inline_below: float = 0.0,
    queue: Queue | None = None,
    name: str = "echo",
) -> EchoModel:
    """A running echo model.

    `delay`: seconds each run takes, slept, or burnt with `busy`, and `delay_per_row`
    more for each row. One input comes back as it is (a copy), several as a tuple; any
    structure of tensors, numbers, strings.

    `in_flight`: 2 or more makes each instance one like an accelerator's, which is given
    up to so many runs (two with `batching`) before the first has ended, and runs them
    one after the other on a thread of its own. A run has begun, for `begun` and `seen`,
    when it is given to it. It tells when a run has ended, or, if `polled`, has to be
    asked.
    """
    script = _core.EchoScript(delay, busy, delay_per_row, in_flight, polled)
    model = make_model(
        EchoModel,
        "echo",
        _core.echo_flights_backend if in_flight > 1 else _core.echo_backend,
        script,
        name=name,
        instances=instances,
        queue=queue,
        batching=batching,
        inline_below=inline_below,
    )
    assert isinstance(model, EchoModel)
    model._script = script
    model._replaced = []
    model._load_again = lambda source: echo(
        instances=instances,
        delay=delay,
        delay_per_row=delay_per_row,
        busy=busy,
        in_flight=in_flight,
        polled=polled,
        batching=batching,
        inline_below=inline_below,
        queue=queue,
        name=name,
    )
    return await started(model)
