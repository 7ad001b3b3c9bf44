"""Runs a scenario on `asyncio.Future` and on ours, and compares what it saw: values,
errors with their words, the order of callbacks, what reached the loop's exception
handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import gc
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pyasyncml._core import Future

LOOPS = ["asyncio"] + ["uvloop"] * (importlib.util.find_spec("uvloop") is not None)
TASKS = ["c", "python"] + ["c-eager", "python-eager"] * (sys.version_info >= (3, 12))

number = contextvars.ContextVar("number", default=0)


class Boom(Exception):
    pass


def plain(value: object) -> str:
    """A repr in which nothing tells one type, or one run, from another."""
    if isinstance(value, traceback.StackSummary):
        return f"stack ending in {value[-1].name}"
    text = value if isinstance(value, str) else repr(value)
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    text = re.sub(r"Task-\d+", "Task-n", text)
    return re.sub(r"\b(_asyncio|pyasyncml\._core|asyncio\.futures)\b", "M", text)


def error(exception: BaseException | None) -> str:
    """Type, words, cause and context of an exception."""
    parts = []
    while exception is not None and len(parts) < 5:
        words = f"{plain(str(exception))}) {plain(exception.args)}"
        parts.append(f"{type(exception).__name__}({words}")
        exception = exception.__cause__ or exception.__context__
    return " <- ".join(parts)


@dataclasses.dataclass
class Env:
    """What a scenario gets: the class under test, its loop, and where to write."""

    cls: Any
    loop: asyncio.AbstractEventLoop
    seen: list[str] = dataclasses.field(default_factory=list)

    def future(self) -> Any:
        return self.cls(loop=self.loop)

    def log(self, *values: object) -> None:
        self.seen.append(" ".join(plain(value) for value in values))

    def attempt(
        self, function: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        """Calls, and writes down what came of it."""
        try:
            self.log("->", function(*args, **kwargs))
        except BaseException as exc:
            self.log("!!", error(exc))

    async def outcome(self, awaitable: Awaitable[object]) -> None:
        try:
            self.log("->", await awaitable)
        except BaseException as exc:
            self.log("!!", error(exc))

    def later(self, turns: int, function: Callable[..., object], *args: object) -> None:
        """Calls in that many turns of the loop; a timer would vary."""
        if turns == 1:
            self.loop.call_soon(function, *args)
        else:
            self.loop.call_soon(self.later, turns - 1, function, *args)

    def callback(self, name: str) -> Callable[[Any], None]:
        def called(future: Any) -> None:
            self.log(name, future._state, number.get())

        return called

    async def turns(self, count: int = 3) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def handler(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.log(
            "handler",
            sorted(context),
            context["message"],
            error(context.get("exception")),
        )


Scenario = Callable[[Env], Any]


def scenario_list() -> tuple[list[Any], Callable[..., Callable[[Scenario], Scenario]]]:
    """A list of scenarios, and the decorator that adds to it."""
    scenarios: list[Any] = []

    def scenario(*marks: Any) -> Callable[[Scenario], Scenario]:
        def register(function: Scenario) -> Scenario:
            scenarios.append(pytest.param(function, marks=marks, id=function.__name__))
            return function

        return register

    return scenarios, scenario


def everywhere(scenarios: list[Any]) -> Callable[[Any], Any]:
    """Each scenario on each loop, with each kind of task, debug mode off and on."""

    def decorate(test: Any) -> Any:
        for name, values, ids in (
            ("run", scenarios, None),
            ("kind", LOOPS, None),
            ("tasks", TASKS, None),
            ("debug", [False, True], ["", "debug"]),
        ):
            test = pytest.mark.parametrize(name, values, ids=ids)(test)
        return test

    return decorate


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        return importlib.import_module("uvloop").new_event_loop()
    return asyncio.new_event_loop()


def task_factory(kind: str) -> Any:
    cls = asyncio.tasks._PyTask if kind.startswith("python") else asyncio.Task
    if kind.endswith("eager"):
        eager = asyncio.create_eager_task_factory(cls)

        def eager_factory(
            loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any
        ) -> Any:
            # uvloop passes it to versions of CPython that don't take it.
            kwargs.pop("eager_start", None)
            return eager(loop, coro, **kwargs)

        return eager_factory

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        return cls(coro, loop=loop, **kwargs)

    return factory


@contextlib.contextmanager
def environment(cls: Any, kind: str, tasks: str, debug: bool) -> Iterator[Env]:
    gc.collect()  # quick: what was there before the test is frozen (conftest.py)
    loop = new_loop(kind)
    env = Env(cls, loop)
    loop.set_debug(debug)
    loop.slow_callback_duration = 60
    loop.set_exception_handler(env.handler)
    loop.set_task_factory(task_factory(tasks))
    if kind == "asyncio":  # what asyncio makes itself; uvloop's loop can't be changed
        loop.create_future = env.future
    try:
        yield env
    finally:
        gc.collect()
        loop.close()


def trace(
    scenario: Scenario, cls: Any, kind: str, tasks: str, debug: bool
) -> list[str]:
    with environment(cls, kind, tasks, debug) as env:
        if inspect.iscoroutinefunction(scenario):
            env.loop.run_until_complete(scenario(env))
        else:
            scenario(env)
        gc.collect()
        return list(env.seen)


def assert_same_trace(run: Scenario, kind: str, tasks: str, debug: bool) -> None:
    expected = trace(run, asyncio.Future, kind, tasks, debug)
    assert expected, "the scenario saw nothing"
    assert trace(run, Future, kind, tasks, debug) == expected
