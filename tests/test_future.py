"""`pyasyncml._core.Future` does what `asyncio.Future` does.

Each scenario runs against both, and what it saw must be the same: values, errors with
their words, the order of callbacks, what reached the loop's exception handler. Over
asyncio and uvloop, tasks in C and in Python, eager ones where CPython has them, debug
mode on and off.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copy
import dataclasses
import functools
import gc
import importlib.util
import inspect
import pickle
import re
import sys
import traceback
import types
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pyasyncml._core import Future

pytestmark = pytest.mark.timeout(60)

#: Without these a version of asyncio has no such thing.
needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")

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
        parts.append(f"{type(exception).__name__}({plain(str(exception))}) {plain(exception.args)}")
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

    def attempt(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
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
        """Calls in that many turns of the loop: unlike timers, in the same one each time."""
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
        self.log("handler", sorted(context), context["message"], error(context.get("exception")))


Scenario = Callable[[Env], Any]
scenarios: list[Any] = []


def scenario(*marks: Any) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        scenarios.append(pytest.param(function, marks=marks, id=function.__name__))
        return function

    return register


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
        return loop
    return asyncio.new_event_loop()


def task_factory(kind: str) -> Any:
    cls = asyncio.tasks._PyTask if kind.startswith("python") else asyncio.Task  # type: ignore[attr-defined]
    if kind.endswith("eager"):
        eager = asyncio.create_eager_task_factory(cls)

        def eager_factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
            kwargs.pop("eager_start", None)  # uvloop passes it to versions that take it not
            return eager(loop, coro, **kwargs)

        return eager_factory

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        return cls(coro, loop=loop, **kwargs)

    return factory


@contextlib.contextmanager
def environment(cls: Any, kind: str, tasks: str, debug: bool) -> Iterator[Env]:
    loop = new_loop(kind)
    env = Env(cls, loop)
    loop.set_debug(debug)
    loop.slow_callback_duration = 60
    loop.set_exception_handler(env.handler)
    loop.set_task_factory(task_factory(tasks))
    loop.create_future = env.future if kind == "asyncio" else loop.create_future  # type: ignore[method-assign]
    try:
        yield env
    finally:
        gc.collect()
        vars(loop).pop("create_future", None) if hasattr(loop, "__dict__") else None
        loop.close()


def trace(scenario: Scenario, cls: Any, kind: str, tasks: str, debug: bool) -> list[str]:
    with environment(cls, kind, tasks, debug) as env:
        if inspect.iscoroutinefunction(scenario):
            env.loop.run_until_complete(scenario(env))
        else:
            scenario(env)
        gc.collect()
        return list(env.seen)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("run", scenarios)
def test_behaves_as_asyncio_does(run: Scenario, kind: str, tasks: str, debug: bool) -> None:
    expected = trace(run, asyncio.Future, kind, tasks, debug)
    assert expected, "the scenario saw nothing"
    assert trace(run, Future, kind, tasks, debug) == expected


# --- awaiting ---


@scenario()
async def awaiting_gives_the_result_or_raises(env: Env) -> None:
    for settle in (
        lambda f: f.set_result((1, 2)),
        lambda f: f.set_result(None),
        lambda f: f.set_result(ValueError("as a value")),
        lambda f: f.set_exception(Boom("x")),
        lambda f: f.set_exception(Boom),
        lambda f: f.cancel(),
        lambda f: f.cancel("why"),
    ):
        ready, later = env.future(), env.future()
        settle(ready)
        await env.outcome(ready)
        env.loop.call_soon(settle, later)
        await env.outcome(later)


@scenario()
async def awaiting_a_done_future_does_not_yield(env: Env) -> None:
    async def other() -> None:
        for i in range(4):
            env.log("other", i)
            await asyncio.sleep(0)

    task = env.loop.create_task(other())
    done = env.future()
    done.set_result("at once")
    for _ in range(3):
        env.log(await done)
    pending = env.future()
    env.loop.call_soon(pending.set_result, "a turn later")
    env.log(await pending)
    await task


@scenario()
async def many_tasks_wait_for_one_future(env: Env) -> None:
    future = env.future()

    async def wait(name: str) -> None:
        try:
            env.log(name, await future)
        except Boom as exc:
            env.log(name, error(exc), exc is future.exception())

    tasks = [env.loop.create_task(wait(name)) for name in "abc"]
    await env.turns()
    future.set_exception(Boom("to all"))
    await asyncio.gather(*tasks)


@scenario()
async def a_cancelled_task_cancels_what_it_waits_for(env: Env) -> None:
    future = env.future()

    async def wait() -> None:
        try:
            await future
        except asyncio.CancelledError as exc:
            env.log("inside", error(exc))
            raise

    task = env.loop.create_task(wait())
    await env.turns()
    env.log(task.cancel("the message"))
    env.log(future.cancelled(), future._cancel_message)
    await env.outcome(task)
    env.attempt(future.result)
    env.attempt(future.exception)


@scenario()
async def cancelling_a_task_before_and_after_its_future_is_done(env: Env) -> None:
    async def wait(future: Any) -> object:
        return await future

    early, late, both = env.future(), env.future(), env.future()
    tasks = [env.loop.create_task(wait(f)) for f in (early, late, both)]
    env.log(tasks[0].cancel())
    await env.turns()
    late.set_result(1)
    env.log(tasks[1].cancel("late"))
    both.cancel("first")
    env.log(tasks[2].cancel("second"))
    for task, future in zip(tasks, (early, late, both)):
        await env.outcome(task)
        env.log(future, future._cancel_message)


@scenario()
async def a_task_that_swallows_the_cancellation_goes_on(env: Env) -> None:
    first, second = env.future(), env.future()

    async def wait() -> object:
        try:
            await first
        except asyncio.CancelledError:
            env.log("swallowed", first)
        return await second

    task = env.loop.create_task(wait())
    await env.turns()
    task.cancel()
    await env.turns()
    second.set_result("went on")
    await env.outcome(task)


@scenario()
async def a_future_of_another_loop_is_refused(env: Env) -> None:
    other = asyncio.new_event_loop()
    try:
        foreign = env.cls(loop=other)

        async def wait() -> None:
            await foreign

        await env.outcome(env.loop.create_task(wait()))
        env.attempt(foreign.cancel)
    finally:
        other.close()


@scenario()
async def yielding_the_future_without_await_is_refused(env: Env) -> None:
    future = env.future()

    @types.coroutine
    def bare() -> Any:
        yield future

    async def wait() -> None:
        await bare()

    await env.outcome(env.loop.create_task(wait()))

    @types.coroutine
    def from_generator() -> Any:
        return (yield from ready)

    ready = env.future()
    env.loop.call_soon(ready.set_result, "yield from")
    await env.outcome(from_generator())


@scenario()
async def raising_again_keeps_the_traceback_of_the_origin(env: Env) -> None:
    def origin() -> None:
        raise Boom("made here")

    future = env.future()
    try:
        origin()
    except Boom as exc:
        future.set_exception(exc)
    for _ in range(3):
        try:
            await future
        except Boom as exc:
            env.log([frame.name for frame in traceback.extract_tb(exc.__traceback__)])
    try:
        try:
            raise KeyError("handled")
        except KeyError:
            future.result()
    except Boom as exc:
        env.log(error(exc))


@scenario()
async def run_until_complete_takes_it(env: Env) -> None:
    env.log(asyncio.isfuture(env.future()), asyncio.isfuture(env.cls))
    future = env.future()
    env.log(asyncio.ensure_future(future) is future)
    env.log(asyncio.futures._get_loop(future) is env.loop)  # type: ignore[attr-defined]
    future.set_result(0)


@scenario()
def run_until_complete_stops_on_it(env: Env) -> None:
    future = env.future()
    env.loop.call_soon(future.set_result, 5)
    env.log(env.loop.run_until_complete(future), future._callbacks)
    failing = env.future()
    env.loop.call_soon(failing.set_exception, Boom("out of the loop"))
    env.attempt(env.loop.run_until_complete, failing)
    stopped = env.future()
    env.loop.call_soon(env.loop.stop)
    env.attempt(env.loop.run_until_complete, stopped)
    env.log(stopped._callbacks)


# --- what asyncio builds on futures ---


@scenario()
async def gather_collects_and_cancels(env: Env) -> None:
    def three() -> list[Any]:
        futures = [env.future() for _ in range(3)]
        env.loop.call_soon(futures[2].set_result, "c")
        return futures

    a, b, c = three()
    env.loop.call_soon(a.set_result, "a")
    env.loop.call_soon(b.set_result, "b")
    await env.outcome(asyncio.gather(a, b, c, a))
    for exceptions in (False, True):
        a, b, c = three()
        env.loop.call_soon(a.set_exception, Boom("a"))
        env.loop.call_soon(b.cancel, "b was cancelled")
        await env.outcome(asyncio.gather(a, b, c, return_exceptions=exceptions))
        a, b, c = three()
        outer = asyncio.gather(a, b, c, return_exceptions=exceptions)
        env.log(outer.cancel("all of it"))
        await env.outcome(outer)
        env.log(a, b, c, a._cancel_message)


@scenario()
async def wait_returns_what_is_done(env: Env) -> None:
    for until in (asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION, asyncio.ALL_COMPLETED):
        names = {env.future(): name for name in "abc"}
        a, b, c = names
        env.later(1, a.set_result, 1)
        env.later(5, b.set_exception, Boom("b"))
        env.later(10, c.cancel)
        done, pending = await asyncio.wait(names, return_when=until)
        env.log(until, sorted(names[f] for f in done), sorted(names[f] for f in pending))
        env.log([f._callbacks for f in pending])
        await asyncio.wait(names)
        b.exception()
    silent = env.future()
    done, pending = await asyncio.wait([silent], timeout=0)
    env.log(len(done), len(pending), silent._callbacks)


@scenario()
async def wait_for_gives_up_or_passes_on(env: Env) -> None:
    for timeout in (None, 10, 0, 0.001):
        never = env.future()
        if timeout in (None, 10):
            env.loop.call_soon(never.set_result, timeout)
        await env.outcome(asyncio.wait_for(never, timeout))
        env.log(never)
    ready = env.future()
    ready.set_result("ready")
    await env.outcome(asyncio.wait_for(ready, 0))
    cancelled = env.future()
    env.loop.call_soon(cancelled.cancel, "by hand")
    await env.outcome(asyncio.wait_for(cancelled, 10))
    inner = env.future()
    task = env.loop.create_task(asyncio.wait_for(inner, 10))
    await env.turns()
    task.cancel("outside")
    await env.outcome(task)
    env.log(inner)


@scenario()
async def shield_keeps_the_inner_future_alive(env: Env) -> None:
    inner = env.future()
    outer = asyncio.shield(inner)
    outer.cancel("outer only")
    await env.outcome(outer)
    env.log(inner)
    inner.set_exception(Boom("nobody listens"))
    await env.turns()
    inner.exception()
    inner = env.future()
    outer = asyncio.shield(inner)
    inner.cancel("inner")
    await env.outcome(outer)
    done = env.future()
    done.set_result(1)
    env.log(asyncio.shield(done) is done)


@scenario()
async def as_completed_gives_them_in_order(env: Env) -> None:
    futures = [env.future() for _ in range(4)]
    env.later(1, futures[2].set_result, "third")
    env.later(5, futures[0].set_exception, Boom("first"))
    env.later(10, futures[3].cancel)
    env.later(15, futures[1].set_result, "second")
    for awaitable in asyncio.as_completed(futures):
        await env.outcome(awaitable)
    never = env.future()
    for awaitable in asyncio.as_completed([never], timeout=0.001):
        await env.outcome(awaitable)
    env.log(never, never._callbacks)


@scenario(needs_3_11)
async def task_groups_wait_and_cancel(env: Env) -> None:
    a, b = env.future(), env.future()

    async def wait(future: Any) -> object:
        try:
            return await future
        except asyncio.CancelledError as exc:
            env.log("cancelled", error(exc))
            raise

    env.loop.call_soon(a.set_result, 1)
    env.loop.call_soon(b.set_result, 2)
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
        tasks = [group.create_task(wait(f)) for f in (a, b)]
    env.log([task.result() for task in tasks])
    a, b = env.future(), env.future()
    env.loop.call_soon(a.set_exception, Boom("a fails"))
    try:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
            group.create_task(wait(a))
            group.create_task(wait(b))
    except BaseException as exc:
        env.log(type(exc).__name__, exc.exceptions, b)  # type: ignore[attr-defined]


@scenario(needs_3_11)
async def a_timeout_cancels_the_future(env: Env) -> None:
    for delay in (0, 0.001, None, 10):
        future = env.future()
        if delay in (None, 10):
            env.loop.call_soon(future.set_result, "in time")
        try:
            async with asyncio.timeout(delay) as scope:  # type: ignore[attr-defined]
                env.log(await future)
        except TimeoutError as exc:
            env.log(error(exc))
        env.log(scope.expired(), future)


@scenario()
async def chained_futures_copy_state_both_ways(env: Env) -> None:
    chain = asyncio.futures._chain_future  # type: ignore[attr-defined]
    for settle in (
        lambda f: f.set_result(1),
        lambda f: f.set_exception(Boom("chained")),
        lambda f: f.cancel(),
    ):
        source, target = env.future(), env.future()
        chain(source, target)
        settle(source)
        await env.turns()
        await env.outcome(target)
        source, target = env.future(), env.future()
        chain(source, target)
        target.cancel("backwards")
        await env.turns()
        env.log(source)
        thread: Any = concurrent.futures.Future()
        target = env.future()
        chain(thread, target)
        settle(thread)
        if thread.cancelled():
            thread.set_running_or_notify_cancel()
        await env.outcome(target)
        source, thread = env.future(), concurrent.futures.Future()
        chain(source, thread)
        settle(source)
        await env.turns()
        env.log(thread._state)
    env.log(await env.loop.run_in_executor(None, lambda: "from a thread"))
    for exception in (concurrent.futures.TimeoutError("t"), concurrent.futures.CancelledError("c")):
        target = env.future()
        target.set_exception(exception)
        await env.outcome(target)


# --- callbacks ---


@scenario()
async def callbacks_run_in_order_in_their_contexts(env: Env) -> None:
    future = env.future()
    number.set(1)
    future.add_done_callback(env.callback("captured"))
    other = contextvars.copy_context()
    other.run(number.set, 2)
    future.add_done_callback(env.callback("given"), context=other)
    future.add_done_callback(env.callback("none"), context=None)
    future.add_done_callback(env.callback("again"), context=other)
    env.log([type(context).__name__ for _, context in future._callbacks])
    number.set(3)
    future.set_result(0)
    env.log("nothing yet", future._callbacks)
    future.add_done_callback(env.callback("late"))
    future.add_done_callback(env.callback("late, given"), context=other)
    await env.turns(2)


@scenario()
async def callbacks_are_removed_by_equality(env: Env) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __eq__(self, other: object) -> bool:
            env.log("eq", self.name, getattr(other, "name", other))
            return isinstance(other, Named) and self.name == other.name

        __hash__ = None  # type: ignore[assignment]

        def __call__(self, future: Any) -> None:
            env.log("called", self.name)

        def __repr__(self) -> str:
            return self.name

    for names in ("", "a", "b", "ab", "ba", "aa", "aab", "aba", "baa", "bbb", "aaaa", "abcabcabc" * 4):
        future = env.future()
        for name in names:
            future.add_done_callback(Named(name))
        env.log(names, future.remove_done_callback(Named("a")))
        future.add_done_callback(Named("z"))
        env.log([str(f) for f, _ in future._callbacks])
        future.set_result(None)
        env.log(future.remove_done_callback(Named("z")))
        await env.turns(1)
    future = env.future()
    method = env.loop.get_debug
    future.add_done_callback(method)
    env.log(future.remove_done_callback(env.loop.get_debug), future.remove_done_callback(1))


@scenario()
async def an_error_in_eq_removes_nothing_more(env: Env) -> None:
    class Failing:
        def __eq__(self, other: object) -> bool:
            raise Boom("no comparison")

        def __call__(self, future: Any) -> None:
            env.log("called")

    for order in ([Failing, print], [print, Failing], [print, print, Failing, print]):
        future = env.future()
        for kind in order:
            future.add_done_callback(Failing() if kind is Failing else print)
        env.attempt(future.remove_done_callback, print)
        env.log(len(future._callbacks))


@scenario()
async def an_error_in_a_callback_reaches_the_handler(env: Env) -> None:
    for exception in (Boom("b"), asyncio.CancelledError("c"), GeneratorExit(), StopIteration(3)):

        def fail(future: Any, exception: BaseException = exception) -> None:
            raise exception

        future = env.future()
        future.add_done_callback(env.callback("before"))
        future.add_done_callback(fail)
        future.add_done_callback(functools.partial(fail, exception=exception))
        future.add_done_callback(env.callback("after"))
        future.set_result(1)
        await env.turns(2)
    future = env.future()
    future.add_done_callback(3)
    env.log(future)
    env.attempt(future.set_result, 1)  # refused by call_soon in debug mode
    await env.turns(2)


@scenario()
def a_context_may_be_any_object_until_the_loop_uses_it(env: Env) -> None:
    future = env.future()
    future.add_done_callback(env.callback("in no context"), context=17)
    env.log(future._callbacks[0][1])
    env.attempt(future.set_result, 1)
    for _ in range(2):
        env.loop.call_soon(env.loop.stop)
        env.attempt(env.loop.run_forever)


@scenario()
def interrupts_in_callbacks_end_the_loop(env: Env) -> None:
    for interrupt in (KeyboardInterrupt, SystemExit):

        def fail(future: Any, interrupt: type[BaseException] = interrupt) -> None:
            raise interrupt("now")

        future = env.future()
        future.add_done_callback(env.callback("before"))
        future.add_done_callback(fail)
        future.add_done_callback(env.callback("after"))
        env.loop.call_soon(future.set_result, 1)
        env.attempt(env.loop.run_forever)
        env.loop.call_soon(env.loop.stop)
        env.attempt(env.loop.run_forever)


@scenario()
async def callbacks_change_the_future_they_are_called_for(env: Env) -> None:
    future = env.future()

    def meddle(f: Any) -> None:
        env.log("meddle", f.remove_done_callback(last), f.cancel())
        f.add_done_callback(env.callback("added inside"))
        env.attempt(f.set_result, 2)

    last = env.callback("last")
    future.add_done_callback(meddle)
    future.add_done_callback(last)
    future.set_result(1)
    await env.turns(3)
    env.log(future.result())


@scenario()
def call_soon_that_fails_forgets_the_rest(env: Env) -> None:
    future = env.future()
    for name in "abc":
        future.add_done_callback(env.callback(name))
    loop = env.loop
    closed = env.cls(loop=asyncio.new_event_loop())
    closed.add_done_callback(env.callback("x"))
    closed.add_done_callback(env.callback("y"))
    closed.get_loop().close()
    env.attempt(closed.set_exception, Boom("closed"))
    env.log(closed._state, closed._log_traceback, closed._callbacks)
    env.attempt(closed.add_done_callback, print)
    env.attempt(closed.result)
    future.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()


# --- states and errors ---


@scenario()
def every_state_answers_every_question(env: Env) -> None:
    def states() -> Iterator[Any]:
        yield env.cls.__new__(env.cls)
        yield env.future()
        for settle in ("set_result", "set_exception", "cancel"):
            future = env.future()
            getattr(future, settle)(Boom("x"))
            yield future
        for _ in range(2):
            waited = env.future()
            iter(waited).__next__()
            yield waited

    questions: list[Callable[[Any], object]] = [
        *(lambda f, n=n: getattr(f, n)() for n in (
            "result", "exception", "done", "cancelled", "get_loop", "cancel", "__iter__",
            "__await__", "__repr__", "_make_cancelled_error", "__del__")),
        *(lambda f, n=n: getattr(f, n) for n in (
            "_state", "_loop", "_callbacks", "_result", "_exception", "_log_traceback",
            "_source_traceback", "_cancel_message", "_asyncio_future_blocking", "__dict__",
            "__weakref__", "no_such_thing")),
        *(lambda f, n=n, v=v: setattr(f, n, v) for n in (
            "_state", "_loop", "_log_traceback", "_asyncio_future_blocking",
            "_cancel_message", "_result", "own")
          for v in (False, True, None, "text")),
        *(lambda f, n=n: delattr(f, n) for n in (
            "_state", "_log_traceback", "_asyncio_future_blocking", "_cancel_message", "own")),
        lambda f: f.set_result(1),
        lambda f: f.set_exception(Boom),
        lambda f: f.add_done_callback(print),
        lambda f: f.remove_done_callback(print),
        lambda f: setattr(f, "own", 1) or f.own,
        lambda f: next(iter(f)),
        lambda f: copy.copy(f),
        lambda f: copy.deepcopy(f),
        lambda f: pickle.dumps(f),
        lambda f: vars(f),
        lambda f: f == f,
        lambda f: f < f,
        lambda f: isinstance(hash(f), int),
        lambda f: bool(f),
        lambda f: f(),
        lambda f: len(f),
    ]
    count = len(list(states()))
    for index in range(count):
        for question in questions:
            future = list(states())[index]
            env.attempt(question, future)
            if future.done() and not future.cancelled():
                env.log(future._log_traceback)


@scenario()
def exceptions_that_can_and_cannot_be_set(env: Env) -> None:
    class Picky(Exception):
        def __init__(self, needed: int) -> None:
            super().__init__(needed)

    class NotOne(Exception):
        def __new__(cls) -> Any:
            return 7

    class Stop(StopIteration):
        pass

    for value in (
        Boom, Boom("i"), BaseException, KeyboardInterrupt(), StopIteration, StopIteration(3),
        Stop(4), Stop, StopAsyncIteration(), Picky, NotOne, 3, None, int, "text", GeneratorExit,
        asyncio.CancelledError("as an exception"), asyncio.InvalidStateError,
    ):  # fmt: skip
        future = env.future()
        future.add_done_callback(env.callback("cb"))
        env.attempt(future.set_exception, value)
        env.log(future._state, future._log_traceback)
        env.attempt(future.exception)
        env.attempt(future.result)
        env.log(future)
    env.loop.call_soon(env.loop.stop)
    env.loop.run_forever()


@scenario()
def constructors_and_arguments(env: Env) -> None:
    future = env.future()
    for call in (
        lambda: env.cls(1), lambda: env.cls(x=1), lambda: env.cls(loop=3),
        lambda: env.cls(loop=env.loop, x=1), lambda: env.cls(**{"loop": env.loop}),
        lambda: future.cancel(1, 2), lambda: future.cancel(x=1),
        lambda: future.add_done_callback(), lambda: future.add_done_callback(fn=1),
        lambda: future.add_done_callback(1, 2), lambda: future.add_done_callback(1, x=2),
        lambda: future.result(1), lambda: future.__init__(1),
        lambda: env.cls.result(3), lambda: env.cls[int], lambda: env.cls[int, str],
        lambda: setattr(env.cls, "x", 1), lambda: future.cancel(msg="m"),
    ):  # fmt: skip
        env.attempt(call)
    env.log(future._cancel_message)


@scenario()
def without_a_loop_the_current_one_is_taken(env: Env) -> None:
    async def inside() -> None:
        env.log(env.cls().get_loop() is env.loop, env.cls(loop=None).get_loop() is env.loop)

    env.loop.run_until_complete(inside())
    asyncio.set_event_loop(env.loop)
    try:
        env.log(env.cls().get_loop() is env.loop)
    finally:
        asyncio.set_event_loop(None)
    env.attempt(env.cls)


@scenario()
def cancel_messages(env: Env) -> None:
    for message in ((), ("text",), (None,), (3,), (ValueError("v"),), (("a", "b"),)):
        future = env.future()
        env.log(future.cancel(*message), future._cancel_message)
        env.attempt(future.result)
        env.attempt(future.exception)
        env.log(error(future._make_cancelled_error()))
        env.log(future._make_cancelled_error() is future._make_cancelled_error())
        env.log(future.cancel("again"), future._cancel_message)
        future._cancel_message = "set by hand"
        env.attempt(future.result)
        try:
            raise KeyError("handled meanwhile")
        except KeyError:
            env.attempt(future.result)


@scenario()
def a_second_init_makes_a_new_future(env: Env) -> None:
    for settle in ("set_result", "set_exception", "cancel", ""):
        future = env.future()
        future.add_done_callback(env.callback("first life"))
        future.own = "kept"
        if settle:
            getattr(future, settle)(Boom("x"))
        future._asyncio_future_blocking = True
        future.__init__(loop=env.loop)
        env.log(future, future.own, future._callbacks, future._log_traceback)
        env.log(future._asyncio_future_blocking, future._cancel_message)
        future.add_done_callback(env.callback("second life"))
        future.set_result(2)
        env.log(future.result())
        env.loop.call_soon(env.loop.stop)
        env.loop.run_forever()


@scenario()
def reprs(env: Env) -> None:
    class Sub(env.cls):  # type: ignore[name-defined, misc]
        pass

    for cls in (env.cls, Sub, type("dotted.name", (env.cls,), {})):
        future = cls(loop=env.loop)
        env.log(future)
        for count in range(5):
            env.log(future)
            future.add_done_callback(print if count % 2 else env.log)
        future.set_result(future)
        env.log(future)
        long = cls(loop=env.loop)
        long.set_result("x" * 1000)
        env.log(long)
        failed = cls(loop=env.loop)
        failed.set_exception(Boom("r"))
        env.log(failed)
        failed.exception()
        cancelled = cls(loop=env.loop)
        cancelled.cancel("m")
        env.log(cancelled)


# --- the iterator ---


@scenario()
def iterators_by_hand(env: Env) -> None:
    future = env.future()
    iterator = iter(future)
    env.log(next(iterator) is future, future._asyncio_future_blocking)
    env.attempt(next, iterator)
    future._asyncio_future_blocking = False
    env.log(iterator.send("ignored") is future)
    future.set_result((1, 2))
    env.attempt(next, iterator)
    env.attempt(next, iterator, "exhausted")
    env.log(iter(iterator) is iterator)
    for value in (None, 3, (), (1,), ValueError("v"), StopIteration(5)):
        future = env.future()
        future.set_result(value)
        env.attempt(next, iter(future))
        env.attempt(future.__await__().send, None)
    for args in (
        (Boom,), (Boom, 3), (Boom("i"),), (Boom("i"), 4), (Boom, (1, 2)), (3,), (Boom, None, 4),
        (Boom, KeyError()), (Boom, Boom("same"), None), (StopIteration,), (int,), (Boom, None, None),
        (), (Boom, 1, None, 4),
    ):  # fmt: skip
        iterator = iter(env.future())
        with pytest.warns(DeprecationWarning) if 1 < len(args) < 4 and sys.version_info >= (
            3,
            12,
        ) else contextlib.nullcontext():
            if args and len(args) < 4:
                env.attempt(iterator.throw, *args)
            else:
                with pytest.raises(TypeError):
                    iterator.throw(*args)
        env.attempt(next, iterator, "end")
    iterator = iter(env.future())
    env.log(iterator.close(), iterator.close())
    env.attempt(next, iterator, "closed")
    try:
        raise Boom("with a traceback")
    except Boom as exc:
        try:
            iter(env.future()).throw(exc)
        except Boom as again:
            env.log(again is exc, len(traceback.extract_tb(again.__traceback__)), again.__context__)


@scenario()
def a_coroutine_driven_by_hand(env: Env) -> None:
    async def wait(future: Any) -> object:
        try:
            return await future
        finally:
            env.log("finally", future)

    for end in ("send", "throw", "close"):
        future = env.future()
        coro = wait(future)
        env.log(coro.send(None) is future)
        if end == "send":
            env.attempt(coro.send, None)
            continue
        env.attempt(getattr(coro, end), *((Boom("thrown"),) if end == "throw" else ()))
    future = env.future()
    future.set_result("done")
    env.attempt(wait(future).send, None)


# --- never retrieved ---


@scenario()
def an_exception_nobody_looked_at_is_reported(env: Env) -> None:
    class Sub(env.cls):  # type: ignore[name-defined, misc]
        pass

    looks: list[Callable[[Any], object]] = [
        lambda f: None,
        lambda f: repr(f),
        lambda f: f.done(),
        lambda f: f._exception,
        lambda f: f.exception(),
        lambda f: f.cancel(),
        lambda f: setattr(f, "_log_traceback", False),
        lambda f: f.__del__(),
        lambda f: f.__init__(loop=env.loop),
        lambda f: setattr(f, "cycle", f),
    ]
    for cls in (env.cls, Sub):
        for look in looks:
            future = cls(loop=env.loop)
            future.set_exception(Boom("lost"))
            look(future)
            env.log("dropped", future._log_traceback)
            del future
            gc.collect()
        future = cls(loop=env.loop)
        future.set_exception(Boom("raised"))
        env.attempt(future.result)
        del future
        gc.collect()


@scenario()
def the_report_names_the_future_and_where_it_was_made(env: Env) -> None:
    def handler(loop: object, context: dict[str, Any]) -> None:
        env.log(list(context), context["future"]._state, error(context["exception"]))
        if "source_traceback" in context:
            env.log(context["source_traceback"][-1].name)

    env.loop.set_exception_handler(handler)
    future = env.future()
    future.set_exception(Boom("lost"))
    del future
    gc.collect()

    def failing(loop: object, context: dict[str, Any]) -> None:
        raise Boom("in the handler")

    env.loop.set_exception_handler(failing)
    env.loop.default_exception_handler = lambda context: env.log(context["message"])  # type: ignore[method-assign]
    with contextlib.suppress(AttributeError):  # uvloop's can't be replaced
        future = env.future()
        future.set_exception(Boom("lost"))
        del future
        gc.collect()
    env.loop.set_exception_handler(None)


@scenario()
def the_report_may_keep_the_future_alive(env: Env) -> None:
    kept: list[Any] = []
    env.loop.set_exception_handler(lambda loop, context: kept.append(context["future"]))
    future = env.future()
    future.set_exception(Boom("back again"))
    del future
    gc.collect()
    env.log(len(kept), kept[0]._log_traceback)
    env.attempt(kept[0].result)
    kept.clear()
    gc.collect()
    env.log(len(kept))


# --- being an object ---


@scenario()
def weak_references_and_cycles(env: Env) -> None:
    future = env.future()
    reference = weakref.ref(future, lambda _: env.log("gone"))
    env.log(reference() is future)
    del future
    env.log(reference())
    future = env.future()
    future.set_result(future)
    future.own = future
    future.add_done_callback(print)
    reference = weakref.ref(future, lambda _: env.log("collected"))
    env.loop.call_soon(env.loop.stop)
    with contextlib.redirect_stdout(None):
        env.loop.run_forever()
    del future
    gc.collect()
    env.log(reference())
    future = env.future()
    future.add_done_callback(lambda f, g=future: None)
    reference = weakref.ref(future)
    del future
    gc.collect()
    env.log(reference())


@scenario()
def subclasses_override_what_they_like(env: Env) -> None:
    class Sub(env.cls):  # type: ignore[name-defined, misc]
        kind = "sub"

        def __init__(self, extra: object, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = extra

        def result(self) -> object:
            env.log("own result")
            return super().result()

        def cancel(self, msg: object = None) -> bool:
            env.log("own cancel", msg)
            return bool(super().cancel(msg))

        def add_done_callback(self, fn: Any, **kwargs: Any) -> None:
            env.log("own add", sorted(kwargs))
            super().add_done_callback(fn, **kwargs)

        def __del__(self) -> None:
            env.log("own del")
            super().__del__()

    class Slotted(env.cls):  # type: ignore[name-defined, misc]
        __slots__ = ("slot",)

    async def main() -> None:
        future = Sub("e", loop=env.loop)
        env.log(future.extra, future.kind, isinstance(future, env.cls))
        env.loop.call_soon(future.set_result, 1)
        env.log(await future)
        waited = Sub("e", loop=env.loop)
        task = env.loop.create_task(asyncio.wait_for(waited, 10))
        await env.turns()
        task.cancel()
        await env.outcome(task)

    env.loop.run_until_complete(main())
    slotted = Slotted(loop=env.loop)
    slotted.slot = slotted.other = 1
    env.log(slotted.slot, slotted.other)
    env.attempt(type, "Two", (env.cls, dict), {})

    class NoInit(env.cls):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            pass

    env.attempt(NoInit().result)
    env.attempt(NoInit().set_result, 1)
    env.log(NoInit().done(), env.cls.__subclasses__().count(NoInit))


# --- the type itself ---


def test_has_the_attributes_of_asyncio_future() -> None:
    # On 3.14 asyncio's type also has the records of who awaits what.
    theirs = {name for name in dir(asyncio.Future) if name != "__module__"}
    ours = {name for name in dir(Future) if name != "__module__"}
    assert ours == theirs
    iterators = [iter(cls(loop=LoopWithoutDebug())) for cls in (asyncio.Future, Future)]
    names = [{name for name in dir(i) if name != "__module__"} for i in iterators]
    assert names[0] == names[1]


class LoopWithoutDebug:
    """All that a future asks its loop when it is made."""

    def get_debug(self) -> bool:
        return False


@pytest.mark.parametrize(
    "name", ["cancel", "result", "exception", "set_result", "set_exception", "remove_done_callback"]
)
def test_has_the_signatures_of_asyncio_future(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Future, asyncio.Future))
    assert ours == theirs
    assert getattr(Future, name).__doc__


def test_is_not_a_subclass_but_counts_as_a_future() -> None:
    assert not issubclass(Future, asyncio.Future)
    assert asyncio.isfuture(Future(loop=LoopWithoutDebug()))


def test_add_done_callback_shows_its_keyword() -> None:
    # CPython's own is broken here: "builtin has invalid signature".
    assert str(inspect.signature(Future.add_done_callback)) == "(self, fn, /, *, context=None)"


def test_the_iterator_class_is_not_for_making() -> None:
    cls = type(iter(Future(loop=LoopWithoutDebug())))
    with pytest.raises(TypeError, match="cannot create"):
        cls()
    with pytest.raises(TypeError):
        type("Sub", (cls,), {})


def test_an_exhausted_iterator_stays_exhausted() -> None:
    # asyncio's raises SystemError from send(): "returned NULL without an exception".
    future = Future(loop=LoopWithoutDebug())
    future.set_result(1)
    iterator = iter(future)
    assert list(iterator) == []
    with pytest.raises(StopIteration):
        iterator.send(None)

    def delegate() -> Any:
        return (yield from iterator)

    with pytest.raises(StopIteration) as stop:
        delegate().send(None)
    assert stop.value.value is None
