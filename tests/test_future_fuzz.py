"""Random programs on futures: `pyasyncml._core.Future` and `asyncio.Future` must tell
the same story. A failing seed is printed by pytest; the program it makes is always the
same one.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import importlib.util
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pyasyncml._core import Future

pytestmark = pytest.mark.timeout(300)

LOOPS = ["asyncio"] + ["uvloop"] * (importlib.util.find_spec("uvloop") is not None)
SEEDS = range(8)
PROGRAMS = 250  # a seed
STEPS = 40  # a program
FUTURES = 4

depth = contextvars.ContextVar("depth", default=0)


class Boom(Exception):
    pass


class Program:
    """A few futures, random steps on them, and what was seen."""

    def __init__(self, cls: Any, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.cls, self.loop = cls, loop
        self.random = random.Random(seed)
        self.seen: list[str] = []
        self.callbacks: list[Any] = []
        self.iterators: list[Any] = []
        self.tasks: list[Any] = []
        self.futures = [self.new() for _ in range(FUTURES)]

    def new(self) -> Any:
        future = self.cls(loop=self.loop)
        if self.random.random() < 0.2:
            weakref.finalize(future, self.log, "gone")
        return future

    def log(self, *values: object) -> None:
        text = " ".join(
            value if isinstance(value, str) else repr(value) for value in values
        )
        text = re.sub(r"0x[0-9a-f]+|Task-\d+", "0x", text)
        self.seen.append(re.sub(r"\b(_asyncio|pyasyncml\._core)\b", "M", text))

    def attempt(
        self, function: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        try:
            self.log("->", function(*args, **kwargs))
        except BaseException as exc:
            self.log("!!", exc, type(exc.__context__), type(exc.__cause__))

    def pick(self) -> Any:
        return self.futures[self.random.randrange(FUTURES)]

    def handler(self, loop: object, context: dict[str, Any]) -> None:
        self.log(
            "handler", sorted(context), context["message"], context.get("exception")
        )

    # Each step takes the same random numbers whatever it sees.

    def set_result(self) -> None:
        value = self.random.choice(
            [None, 1, "text", (1, 2), Boom("value"), self.pick()]
        )
        self.attempt(self.pick().set_result, value)

    def set_exception(self) -> None:
        value = self.random.choice(
            [Boom, Boom("e"), StopIteration(1), 3, asyncio.CancelledError("s")]
        )
        self.attempt(self.pick().set_exception, value)

    def cancel(self) -> None:
        self.attempt(
            self.pick().cancel, *self.random.choice([(), ("m",), (None,), (7,)])
        )

    def add(self) -> None:
        number = len(self.callbacks)
        steps = self.random.choices(STEPS_INSIDE, k=self.random.randrange(3))
        fails = self.random.random() < 0.15

        def callback(future: Any) -> None:
            self.log("called", number, future._state, depth.get())
            if len(self.seen) > 2000:
                return
            depth.set(depth.get() + 1)
            for step in steps:
                step(self)
            if fails:
                raise Boom(number)

        self.callbacks.append(callback)
        context = (
            {}
            if self.random.random() < 0.7
            else {"context": contextvars.copy_context()}
        )
        self.attempt(self.pick().add_done_callback, callback, **context)

    def add_again(self) -> None:
        if self.callbacks:
            self.attempt(
                self.pick().add_done_callback, self.random.choice(self.callbacks)
            )

    def remove(self) -> None:
        if self.callbacks:
            self.attempt(
                self.pick().remove_done_callback, self.random.choice(self.callbacks)
            )

    def look(self) -> None:
        names = [
            "result",
            "exception",
            "done",
            "cancelled",
            "_make_cancelled_error",
            "__repr__",
        ]
        self.attempt(getattr(self.pick(), self.random.choice(names)))

    def peek(self) -> None:
        names = ["_state", "_result", "_exception", "_log_traceback", "_cancel_message",
                 "_asyncio_future_blocking"]  # fmt: skip
        self.attempt(getattr, self.pick(), self.random.choice(names))
        callbacks = self.pick()._callbacks
        self.log(None if callbacks is None else len(callbacks))

    def poke(self) -> None:
        name, value = self.random.choice(
            [
                ("_log_traceback", False),
                ("_cancel_message", "poked"),
                ("_asyncio_future_blocking", False),
            ]
        )
        self.attempt(setattr, self.pick(), name, value)

    def iterate(self) -> None:
        if not self.iterators or self.random.random() < 0.3:
            self.iterators.append(iter(self.pick()))
        iterator = self.random.choice(self.iterators)
        kind = self.random.randrange(8)
        if kind < 6:
            self.attempt(next, iterator, "end")
        elif kind == 6:
            self.attempt(iterator.throw, Boom("thrown"))
        else:
            self.attempt(iterator.close)

    def init_again(self) -> None:
        self.attempt(self.pick().__init__, loop=self.loop)

    def replace(self) -> None:
        self.futures[self.random.randrange(FUTURES)] = self.new()

    def collect(self) -> None:
        if self.random.random() < 0.02:
            gc.collect()

    def turn(self) -> None:
        if not self.loop.is_running():
            self.loop.call_soon(self.loop.stop)
            self.attempt(self.loop.run_forever)

    def wait(self) -> None:
        kind = self.random.randrange(6)
        first, second = self.pick(), self.pick()
        number = len(self.tasks)

        async def main() -> object:
            try:
                if kind == 0:
                    return await asyncio.gather(first, second)
                if kind == 1:
                    return await asyncio.gather(first, second, return_exceptions=True)
                if kind == 2:
                    return await asyncio.shield(first)
                if kind == 3:
                    done, pending = await asyncio.wait({first, second})
                    return len(done), len(pending)
                if kind == 4:
                    return await asyncio.wait_for(first, 60)
                return await first
            except BaseException as exc:
                self.log("task", number, exc, first._state)
                raise

        task = self.loop.create_task(main())
        task.add_done_callback(
            lambda t: t.cancelled() or self.log("task", number, t.exception())
        )
        self.tasks.append(task)

    def cancel_task(self) -> None:
        if self.tasks:
            self.attempt(self.random.choice(self.tasks).cancel, "by the program")

    def run(self) -> list[str]:
        steps = self.random.choices(
            list(STEPS_ALL), weights=list(STEPS_ALL.values()), k=STEPS
        )
        for step in steps:
            self.log(step.__name__)
            step(self)
        for future in self.futures:
            future.cancel()
        for task in self.tasks:
            task.cancel()
        for _ in range(12):
            self.turn()
        for future in self.futures:
            self.attempt(future.result)
        for task in self.tasks:
            self.log(task.done())
        return self.seen


STEPS_INSIDE = [
    Program.set_result, Program.set_exception, Program.cancel, Program.add,
    Program.add_again, Program.remove, Program.look, Program.replace,
    Program.init_again,
]  # fmt: skip

STEPS_ALL = {
    Program.set_result: 3, Program.set_exception: 3, Program.cancel: 3, Program.add: 8,
    Program.add_again: 2, Program.remove: 4, Program.look: 6, Program.peek: 4,
    Program.poke: 1,
    Program.iterate: 3, Program.init_again: 1, Program.replace: 4, Program.collect: 1,
    Program.turn: 6, Program.wait: 4, Program.cancel_task: 2,
}  # fmt: skip


def story(cls: Any, loop: asyncio.AbstractEventLoop, seed: int) -> list[str]:
    program = Program(cls, loop, seed)
    loop.set_exception_handler(program.handler)
    seen = contextvars.Context().run(program.run)
    # What the collector finds at the end, it finds in no order worth comparing.
    program.seen = []
    for pool in (program.futures, program.tasks, program.iterators, program.callbacks):
        pool.clear()
    gc.collect()
    return seen + sorted(program.seen)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", LOOPS)
def test_random_programs_tell_the_same_story(kind: str, seed: int, debug: bool) -> None:
    module = asyncio if kind == "asyncio" else importlib.import_module("uvloop")
    loops = [module.new_event_loop() for _ in range(2)]
    gc.collect()
    gc.disable()  # it would report lost exceptions at different moments
    try:
        for loop in loops:
            loop.set_debug(debug)
            loop.slow_callback_duration = 60
        told = 0
        for number in range(
            seed * PROGRAMS, seed * PROGRAMS + (PROGRAMS // 10 if debug else PROGRAMS)
        ):
            theirs, ours = (
                story(cls, loop, number)
                for cls, loop in zip((asyncio.Future, Future), loops, strict=True)
            )
            assert ours == theirs, f"program {number}"
            told += len(ours)
        assert told > 1000
    finally:
        gc.enable()
        for loop in loops:
            loop.close()
