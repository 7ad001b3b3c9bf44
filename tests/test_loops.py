"""Loops come and go, nest, stop, live in threads; a model belongs to none of them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def finished(model):
    return model._script.seen()[1]


def spin_until(condition):
    """Keeps the thread that the loop needs."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until


def test_thousand_loops_one_after_another_share_a_model_and_leave_nothing(make_loop):
    async def use(model, n):
        assert await model.infer(n) == n

    async def close(model):
        await model.close()

    def run(coroutine):
        loop = make_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    model = run(echo())
    before = open_descriptors()
    for n in range(1_000):
        run(use(model, n))
    assert open_descriptors() <= before
    run(close(model))
    assert model.stats().completed == 1_000


def test_results_for_a_loop_that_was_closed_vanish_silently(make_loop, asyncio_log):
    async def submit(model, arrays):
        model.hold()
        futures = [model.infer(x) for x in arrays]
        await model.begun(1)
        return futures

    async def close(model):
        assert await model.infer(1) == 1
        await model.close()

    first, second = make_loop(), make_loop()
    model = first.run_until_complete(echo())
    before = open_descriptors()
    arrays = [np.zeros(n) for n in range(1, 101)]
    gone = [weakref.ref(x) for x in arrays]
    futures = first.run_until_complete(submit(model, arrays))
    first.close()
    del arrays
    gc.collect()
    # What waited was given back at once; what runs has its input until it has run.
    assert sum(ref() is not None for ref in gone) == 1
    assert not any(future.done() for future in futures)
    model.release()
    second.run_until_complete(close(model))
    assert all(ref() is None for ref in gone)
    assert model.runs == 2
    second.close()
    del first, second
    assert not any(future.done() for future in futures)
    assert not any(future.cancel() and future.cancel() for future in futures)
    del futures
    gc.collect()
    assert open_descriptors() <= before
    assert asyncio_log == []


def test_loops_closed_with_work_in_flight_a_hundred_times_leak_nothing(make_loop):
    async def submit(model):
        for n in range(20):
            model.infer(np.zeros(n), timeout=None if n % 2 else 5)

    async def close(model):
        await model.close()

    loop = make_loop()
    model = loop.run_until_complete(echo(instances=2))
    loop.close()
    before = open_descriptors()
    for _ in range(100):
        loop = make_loop()
        loop.run_until_complete(submit(model))
        loop.close()
    del loop
    gc.collect()
    # At most those whose last runs nobody collected yet.
    assert open_descriptors() - before <= 100
    loop = make_loop()
    loop.run_until_complete(close(model))
    loop.close()


def test_two_loops_in_two_threads_share_a_model(run):
    async def main():
        async with await echo(instances=2) as model:
            failures = []

            async def use(offset):
                for _ in range(20):
                    numbers = range(offset, offset + 100)
                    if await asyncio.gather(*map(model.infer, numbers)) != [*numbers]:
                        failures.append(offset)

            others = [
                threading.Thread(target=asyncio.run, args=(use(n * 1000),))
                for n in range(2)
            ]
            for other in others:
                other.start()
            await use(9_000)
            await asyncio.to_thread(lambda: [other.join() for other in others])
            assert failures == []
            assert model.stats().completed == 6_000

    run(main)


def test_future_of_another_loop_cannot_be_awaited(make_loop):
    async def submit():
        model = await echo()
        model.hold()
        return model, model.infer(1), model.infer(2)

    async def misuse(future):
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await future

    async def finish(model, future):
        model.release()
        assert await future == 2
        await model.close()

    first, second = make_loop(), make_loop()
    model, misused, future = first.run_until_complete(submit())
    second.run_until_complete(misuse(misused))
    first.run_until_complete(finish(model, future))
    assert misused.result() == 1
    first.close()
    second.close()


def test_loop_that_stops_and_runs_again_gets_what_came_meanwhile(make_loop):
    """As a notebook's does between two cells."""
    loop = make_loop()
    model = loop.run_until_complete(echo())
    futures = []
    for n in range(50):
        loop.call_soon(lambda n=n: futures.append(model.infer(n)))
        loop.call_soon(loop.stop)
        loop.run_forever()
        spin_until(lambda n=n: finished(model) == n + 1)
    assert loop.run_until_complete(asyncio.wait(futures))[1] == set()
    assert [future.result() for future in futures] == list(range(50))
    loop.call_soon(lambda: futures.append(model.close()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(futures[-1])
    loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_callback_ends_the_loop_and_the_rest_still_arrives(
    make_loop, error
):
    def interrupt(future):
        raise error

    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(n) for n in range(1_000)]
            futures[3].add_done_callback(interrupt)
            model.release()
            spin_until(lambda: finished(model) == 1_000)
            assert await asyncio.gather(*futures) == list(range(1_000))

    loop = make_loop()
    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    assert not task.done()
    loop.run_until_complete(task)
    loop.close()


def test_interrupt_in_a_task_woken_by_a_result_ends_the_loop(make_loop):
    async def main():
        async def interrupted():
            await model.infer(1)
            raise KeyboardInterrupt

        async with await echo() as model:
            task = asyncio.create_task(interrupted())
            await asyncio.wait([task])
            assert isinstance(task.exception(), KeyboardInterrupt)
            assert await model.infer(2) == 2

    loop = make_loop()
    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    loop.close()


def test_task_made_before_an_await_has_begun_after_it(run):
    """Every await that waits gives the loop's other callbacks a turn, also when the
    result is quick: the hub used to serve it within the same callback of the loop."""

    async def main():
        async with await echo() as model:
            await model.infer(0)
            for n in range(2_000):
                begun = []
                asyncio.get_running_loop().call_soon(begun.append, n)
                future = model.infer(n)
                waited = not future.done()
                await future
                assert begun == [n] or not waited

    run(main)


def test_slow_callbacks_of_many_results_leave_the_loop_its_turns(run):
    """The loop's other callbacks don't wait for all of them."""

    async def main():
        loop = asyncio.get_running_loop()
        turns = 0
        seen = []

        def count():
            nonlocal turns
            turns += 1
            if len(seen) < 64:
                loop.call_soon(count)

        def slow(_):
            seen.append(turns)
            time.sleep(0.001)

        async with await echo() as model:
            before = finished(model)
            futures = [model.infer(n) for n in range(64)]
            for future in futures:
                future.add_done_callback(slow)
            spin_until(lambda: finished(model) - before == 64)
            loop.call_soon(count)
            await asyncio.gather(*futures)
            assert len(set(seen)) >= 4, seen

    run(main)


# --- the thread of the loop is busy ---


@pytest.mark.parametrize("woken", ["first", "woken by a result"])
def test_workers_finish_everything_while_the_loops_thread_keeps_the_gil(run, woken):
    async def main():
        async with await echo(instances=2) as model:
            if woken != "first":
                await asyncio.gather(*map(model.infer, range(10)))
            before = finished(model)
            futures = [model.infer(np.full(100, n)) for n in range(1_000)]
            spin_until(lambda: finished(model) - before == 1_000)  # nobody awaits
            results = await asyncio.gather(*futures)
            assert [result[0] for result in results] == list(range(1_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        run(main)
    finally:
        sys.setswitchinterval(interval)


def test_workers_finish_what_a_callback_submitted_before_it_kept_the_gil(run):
    async def main():
        seen = asyncio.get_running_loop().create_future()

        def submit(_):
            before = finished(model)
            futures.extend(model.infer(n) for n in range(500))
            try:
                spin_until(lambda: finished(model) - before == 500)
            finally:
                seen.set_result(None)

        async with await echo() as model:
            futures = []
            model.infer(1).add_done_callback(submit)
            await seen
            assert await asyncio.gather(*futures) == list(range(500))

    run(main)


# --- loops that run within loops ---


class NestingLoop(asyncio.SelectorEventLoop):
    """May be run within itself, as nest_asyncio makes loops, and marks them."""

    _nest_patched = True

    def _run_once(self):
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)
        timeout = None
        if self._ready or self._stopping:
            timeout = 0
        elif self._scheduled:
            timeout = max(0, self._scheduled[0]._when - self.time())
        self._process_events(self._selector.select(timeout))
        while self._scheduled and self._scheduled[0]._when <= self.time():
            self._ready.append(heapq.heappop(self._scheduled))
        for _ in range(len(self._ready)):
            if not self._ready:
                break  # one that runs further up the stack took them
            handle = self._ready.popleft()
            if not handle._cancelled:
                handle._run()

    def run_nested(self, condition):
        while not condition():
            self._run_once()


@pytest.fixture
def run_nesting():
    def run(main):
        loop = NestingLoop()
        try:
            return loop.run_until_complete(main(loop))
        finally:
            loop.close()

    return run


def test_callback_that_runs_the_loop_again_gets_the_rest_of_the_results(run_nesting):
    async def main(loop):
        async with await echo() as model:
            model.hold()
            futures = [model.infer(n) for n in range(1_000)]
            seen = []

            def nest(future):
                loop.run_nested(lambda: all(f.done() for f in futures))
                seen.append(loop.is_running())
                late = model.infer("late")
                loop.run_nested(late.done)
                seen.append(late.result())

            futures[0].add_done_callback(nest)
            model.release()
            spin_until(lambda: finished(model) == 1_000)
            assert await asyncio.gather(*futures) == list(range(1_000))
            while len(seen) < 2:  # we may be running in the inner loop
                await asyncio.sleep(0)
            assert seen == [True, "late"]

    run_nesting(main)


def test_every_callback_may_run_the_loop_again_within_the_one_before(run_nesting):
    done = []

    async def main(loop):
        async with await echo() as model:
            entered, left = [], []

            def nest(future):
                n = future.result()
                entered.append(n)
                if n < 29:
                    model.release(1)
                    loop.run_nested(lambda: len(entered) > n + 1)
                left.append(n)

            model.hold()
            futures = [model.infer(n) for n in range(30)]
            for future in futures:
                future.add_done_callback(nest)
            model.release(1)
            await asyncio.gather(*futures)
            assert entered == list(range(30))
            done.extend([entered, left])

    run_nesting(main)
    entered, left = done  # only now have all loops been left
    assert sorted(left) == entered


def test_task_that_steps_aside_and_runs_the_loop_again_gets_its_result(run_nesting):
    """What nest_asyncio does for `asyncio.run` within a cell."""

    async def main(loop):
        async def inner(n):
            return [await model.infer(n), await model.infer(n + 1)]

        def run_inside(n):
            task = asyncio.current_task()
            asyncio.tasks._leave_task(loop, task)
            try:
                made = loop.create_task(inner(n))
                loop.run_nested(made.done)
                return made.result()
            finally:
                asyncio.tasks._enter_task(loop, task)

        async def outer(n):
            assert await model.infer(n) == n
            return run_inside(n)

        async with await echo() as model:
            assert run_inside(1) == [1, 2]
            outcomes = await asyncio.gather(*(outer(n) for n in range(50)))
            assert outcomes == [[n, n + 1] for n in range(50)]

    run_nesting(main)


def test_loop_that_is_closed_within_a_callback_is_not_touched_again(make_loop):
    async def submit():
        model = await echo()
        model.hold()
        futures = [model.infer(n) for n in range(100)]
        model.release()
        spin_until(lambda: finished(model) == 100)
        return model, futures

    async def close(model):
        await model.close()

    loop = make_loop()
    model, futures = loop.run_until_complete(submit())
    futures[50].add_done_callback(lambda _: loop.stop())
    loop.run_forever()
    loop.close()
    del futures
    loop = make_loop()
    loop.run_until_complete(close(model))
    loop.close()


# --- what a loop may be ---


def test_loop_that_knows_no_readers_says_so():
    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *args):
            raise NotImplementedError("no readers here")

        def _add_reader(self, *args):  # its own pipe
            return super()._add_reader(*args)

    async def main():
        for _ in range(3):
            with pytest.raises(NotImplementedError, match="no readers here"):
                ml.call(int)

    before = open_descriptors()
    loop = Loop()
    loop.run_until_complete(main())
    loop.close()
    gc.collect()
    assert open_descriptors() <= before


def test_context_of_the_first_caller_is_not_kept_by_the_loop():
    variable = contextvars.ContextVar("variable")

    async def main():
        variable.set("the first caller's")
        async with await echo() as model:
            assert await model.infer(1) == 1
            keys = asyncio.get_running_loop()._selector.get_map().values()
            readers = [reader for reader, writer in (key.data for key in keys)]
            contexts = [r._context for r in readers if "Hub.drain" in repr(r)]
            assert contexts
            assert not any(variable in context for context in contexts)

    asyncio.run(main())


def test_callback_of_an_expired_request_runs_in_its_own_context(run):
    variable = contextvars.ContextVar("variable", default="nobody's")

    async def main():
        variable.set("the first caller's")
        async with await echo() as model:
            seen = []
            model.hold()
            late = model.infer(1, timeout=0.001)
            context = contextvars.copy_context()
            context.run(variable.set, "a callback's")
            late.add_done_callback(
                lambda f: seen.append((variable.get(), type(f.exception()))),
                context=context,
            )
            await asyncio.wait([late])
            model.release()
            assert seen == [("a callback's", ml.DeadlineExceeded)]
            assert variable.get() == "the first caller's"

    run(main)
