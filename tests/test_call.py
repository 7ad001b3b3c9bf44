"""`call(fn, …)`: any Python callable on a worker."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import os
import sys
import threading
import traceback
import weakref

import pytest

import pyasyncml as ml

POOL = min(32, len(os.sched_getaffinity(0)) + 4)


def fill_pool(event):
    """Calls that keep every worker until the event is set."""
    barrier = threading.Barrier(POOL + 1)

    def wait():
        barrier.wait()
        event.wait()

    futures = [ml.call(wait) for _ in range(POOL)]
    barrier.wait()  # all have begun
    return futures


def test_call_gives_what_the_callable_returns(run):
    async def main():
        future = ml.call(divmod, 17, 5)
        assert isinstance(future, ml.Future)
        assert await future == (3, 2)
        assert await ml.call(lambda: None) is None
        value = object()
        assert await ml.call(lambda x: x, value) is value

    run(main)


def test_call_passes_every_keyword_on(run):
    async def main():
        def echo(*args, **kwargs):
            return args, kwargs

        names = {"fn": 1, "self": 2, "timeout": 3, "priority": 4, "args": 5}
        assert await ml.call(echo, 0, **names) == ((0,), names)

    run(main)


def test_call_runs_on_another_thread_while_the_loop_goes_on(run):
    async def main():
        event = threading.Event()
        future = ml.call(lambda: (threading.get_ident(), event.wait()))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not future.done()
        event.set()
        ident, _ = await future
        assert ident != threading.get_ident()

    run(main)


def test_several_calls_run_at_once(run):
    async def main():
        barrier = threading.Barrier(POOL)
        numbers = await asyncio.gather(*(ml.call(barrier.wait) for _ in range(POOL)))
        assert sorted(numbers) == list(range(POOL))

    run(main)


def test_more_calls_than_workers_all_run(run):
    async def main():
        numbers = await asyncio.gather(*(ml.call(int, n) for n in range(2_000)))
        assert numbers == list(range(2_000))

    run(main)


def test_exception_arrives_as_it_was_raised_with_its_traceback(run):
    async def main():
        error = ValueError("from the callable")

        def fail():
            raise error

        future = ml.call(fail)
        with pytest.raises(ValueError, match="from the callable") as caught:
            await future
        assert caught.value is error is future.exception()
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert frames[-1] == "fail"

    run(main)


def test_exception_keeps_its_cause(run):
    async def main():
        def fail():
            try:
                {}["key"]
            except KeyError as error:
                raise ValueError("outer") from error

        with pytest.raises(ValueError, match="outer") as caught:
            await ml.call(fail)
        assert isinstance(caught.value.__cause__, KeyError)

    run(main)


def test_stop_iteration_arrives_as_a_runtime_error(run):
    async def main():
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await ml.call(next, iter([]))
        assert isinstance(caught.value.__cause__, StopIteration)

    run(main)


def test_cancelled_error_raised_by_the_callable_arrives(run):
    async def main():
        def fail():
            raise asyncio.CancelledError("by itself")

        with pytest.raises(asyncio.CancelledError):
            await ml.call(fail)

    run(main)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_raised_by_the_callable_ends_the_loop_as_with_to_thread(
    make_loop, error
):
    def fail():
        raise error("from the callable")

    async def main():
        await ml.call(fail)

    loop = make_loop()
    with pytest.raises(error, match="from the callable"):
        loop.run_until_complete(main())
    loop.close()


def test_exception_nobody_looks_at_is_reported(run):
    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: told.append(context["exception"])
        )
        future = ml.call(int, "not a number")
        await asyncio.wait([future])
        del future
        assert [type(error) for error in told] == [ValueError]

    run(main)


@pytest.mark.parametrize("fn", [None, 1, "print", [print]])
def test_what_is_not_callable_is_refused_at_the_call(run, fn):
    async def main():
        with pytest.raises(TypeError, match="^fn: expected a callable"):
            ml.call(fn)

    run(main)


def test_call_without_a_callable_is_a_type_error(run):
    async def main():
        with pytest.raises(TypeError):
            ml.call()

    run(main)


def test_call_without_a_running_loop_raises():
    with pytest.raises(RuntimeError, match="no running event loop"):
        ml.call(int)


def test_cancelled_call_that_has_not_begun_never_begins(run):
    async def main():
        event = threading.Event()
        begun = []
        futures = fill_pool(event)
        waiting = [ml.call(begun.append, n) for n in range(5)]
        waiting[1].cancel()
        waiting[3].cancel()
        event.set()
        await asyncio.gather(*futures)
        await asyncio.wait(waiting)
        assert sorted(begun) == [0, 2, 4]

    run(main)


def test_cancelled_call_that_runs_settles_at_once_and_runs_on(run, asyncio_log):
    async def main():
        begun, go_on, ended = (threading.Event() for _ in range(3))

        def work():
            begun.set()
            go_on.wait()
            ended.set()
            raise ValueError("nobody hears this")

        future = ml.call(work)
        await ml.call(begun.wait)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        assert not ended.is_set()
        go_on.set()
        await ml.call(ended.wait)

    run(main)
    assert asyncio_log == []


def test_context_variables_are_carried_over_and_changes_stay_there(run):
    variable = contextvars.ContextVar("variable", default=0)

    async def main():
        def change(n):
            before = variable.get()
            variable.set(n)
            return before

        variable.set(1)
        assert await ml.call(change, 2) == 1
        assert variable.get() == 1
        assert await ml.call(variable.get) == 1

    run(main)


def test_one_context_may_be_in_many_calls_at_once(run):
    async def main():
        barrier = threading.Barrier(POOL)
        context = contextvars.copy_context()
        futures = [context.run(ml.call, barrier.wait) for _ in range(POOL)]
        assert len(await asyncio.gather(*futures)) == POOL

    run(main)


class Thing:
    pass


def test_arguments_and_result_are_released(run):
    async def main():
        def give(thing):
            return Thing()

        argument = Thing()
        gone = [weakref.ref(argument)]
        future = ml.call(give, argument)
        del argument
        result = await future
        gone.append(weakref.ref(result))
        del future, result
        await asyncio.sleep(0)  # whoever woke us held the future, as asyncio does
        gc.collect()
        assert [ref() for ref in gone] == [None, None]

    run(main)


def test_references_of_a_failed_call_are_released(run):
    async def main():
        def fail(thing):
            raise ValueError("on purpose")

        argument = Thing()
        gone = weakref.ref(argument)
        future = ml.call(fail, argument)
        del argument
        with pytest.raises(ValueError, match="on purpose"):
            await future
        del future
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        assert gone() is None

    run(main)


def test_result_of_a_call_whose_loop_is_gone_is_released(make_loop):
    begun, go_on, ended = (threading.Event() for _ in range(3))
    gone = []

    class Loud:
        def __del__(self):
            ended.set()

    def work(thing):
        begun.set()
        go_on.wait()
        result = Loud()
        gone.append(weakref.ref(thing))
        return result

    async def submit():
        ml.call(work, Thing())
        while not begun.is_set():
            await asyncio.sleep(0)

    async def another():
        while not ended.is_set():
            await ml.call(int)

    loop = make_loop()
    loop.run_until_complete(submit())
    loop.close()
    go_on.set()
    loop = make_loop()
    loop.run_until_complete(another())  # frees what arrived for the first
    loop.close()
    assert gone[0]() is None


def test_callable_may_run_a_loop_of_its_own(run):
    async def inner():
        return await ml.call(lambda: "inner")

    async def main():
        assert await ml.call(asyncio.run, inner()) == "inner"
        with pytest.raises(RuntimeError, match="no running event loop"):
            await ml.call(ml.call, int)

    run(main)


def test_recursion_that_is_too_deep_is_an_error_like_any_other(run):
    async def main():
        def deeper():
            return deeper()

        with pytest.raises(RecursionError):
            await ml.call(deeper)
        assert await ml.call(int) == 0

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    try:
        run(main)
    finally:
        sys.setrecursionlimit(limit)


def test_thread_locals_stay_with_the_worker(run):
    local = threading.local()

    async def main():
        event = threading.Event()

        def remember(n):
            event.wait()
            before = getattr(local, "n", None)
            local.n = n
            return before

        futures = [ml.call(remember, n) for n in range(100)]
        event.set()
        outcomes = await asyncio.gather(*futures)
        assert 1 <= outcomes.count(None) <= POOL
        assert not hasattr(local, "n")

    run(main)


async def nothing():
    pass


class AsyncCallable:
    async def __call__(self):
        pass


@pytest.mark.parametrize("fn", [nothing, functools.partial(nothing)], ids=repr)
def test_coroutine_function_is_a_type_error_that_says_what_to_do(run, fn):
    async def main():
        with pytest.raises(TypeError, match="coroutine function: await it directly"):
            ml.call(fn)

    run(main)


@pytest.mark.parametrize("fn", [lambda: nothing(), AsyncCallable()], ids=type)
def test_coroutine_that_a_call_returns_is_closed_and_a_type_error(run, fn):
    """It was given out, and nobody knew to await it twice."""

    async def main():
        with pytest.raises(TypeError, match="returned a coroutine: await it directly"):
            await ml.call(fn)
        assert await ml.call(asyncio.run, nothing()) is None

    run(main)
