"""Awaiting `pyasyncml._core.Future`, what asyncio builds on it, and its callbacks: all
as with `asyncio.Future`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import sys
import traceback
import types
from typing import Any

import pytest
from future_oracle import (
    Boom,
    Env,
    Scenario,
    assert_same_trace,
    error,
    everywhere,
    number,
    scenario_list,
)

pytestmark = pytest.mark.timeout(60)

#: Without these a version of asyncio has no such thing.
needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")

scenarios, scenario = scenario_list()


@everywhere(scenarios)
def test_behaves_as_asyncio_does(
    run: Scenario, kind: str, tasks: str, debug: bool
) -> None:
    assert_same_trace(run, kind, tasks, debug)


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
    for task, future in zip(tasks, (early, late, both), strict=True):
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
    env.log(asyncio.futures._get_loop(future) is env.loop)
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
    for until in (
        asyncio.FIRST_COMPLETED,
        asyncio.FIRST_EXCEPTION,
        asyncio.ALL_COMPLETED,
    ):
        names = {env.future(): name for name in "abc"}
        a, b, c = names
        env.later(1, a.set_result, 1)
        env.later(5, b.set_exception, Boom("b"))
        env.later(10, c.cancel)
        done, pending = await asyncio.wait(names, return_when=until)
        env.log(
            until, sorted(names[f] for f in done), sorted(names[f] for f in pending)
        )
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
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait(f)) for f in (a, b)]
    env.log([task.result() for task in tasks])
    a, b = env.future(), env.future()
    env.loop.call_soon(a.set_exception, Boom("a fails"))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(a))
            group.create_task(wait(b))
    except BaseException as exc:
        env.log(type(exc).__name__, exc.exceptions, b)


@scenario(needs_3_11)
async def a_timeout_cancels_the_future(env: Env) -> None:
    for delay in (0, 0.001, None, 10):
        future = env.future()
        if delay in (None, 10):
            env.loop.call_soon(future.set_result, "in time")
        try:
            async with asyncio.timeout(delay) as scope:
                env.log(await future)
        except TimeoutError as exc:
            env.log(error(exc))
        env.log(scope.expired(), future)


@scenario()
async def chained_futures_copy_state_both_ways(env: Env) -> None:
    chain = asyncio.futures._chain_future
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
    for exception in (
        concurrent.futures.TimeoutError("t"),
        concurrent.futures.CancelledError("c"),
    ):
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

        __hash__ = None

        def __call__(self, future: Any) -> None:
            env.log("called", self.name)

        def __repr__(self) -> str:
            return self.name

    for names in (
        "",
        "a",
        "b",
        "ab",
        "ba",
        "aa",
        "aab",
        "aba",
        "baa",
        "bbb",
        "aaaa",
        "abcabcabc" * 4,
    ):
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
    env.log(
        future.remove_done_callback(env.loop.get_debug), future.remove_done_callback(1)
    )


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
    for exception in (
        Boom("b"),
        asyncio.CancelledError("c"),
        GeneratorExit(),
        StopIteration(3),
    ):

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
