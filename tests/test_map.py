"""`Model.map`: order, back-pressure, and how an iteration ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo

SOURCES = ["iterable", "async iterable"]


def source_of(kind, items, pulled=None):
    """Gives the items; notes each as it is pulled."""

    def plain():
        for item in items:
            if pulled is not None:
                pulled.append(item)
            yield item

    async def slow():
        for item in plain():
            await asyncio.sleep(0)
            yield item

    return slow() if kind == "async iterable" else plain()


async def turns(n=20):
    """Lets everything go on that can."""
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
def test_every_item_has_its_result(run, kind, ordered):
    async def main():
        async with await echo(instances=2) as model:
            source = source_of(kind, range(1000))
            results = [y async for y in model.map(source, ordered=ordered)]
            if ordered:
                assert results == list(range(1000))
            assert sorted(results) == list(range(1000))
            assert model.runs == 1000

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_empty_source_gives_nothing(run, kind):
    async def main():
        async with await echo() as model:
            assert [y async for y in model.map(source_of(kind, ()))] == []

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_item_that_is_a_tuple_is_several_inputs(run, kind):
    async def main():
        async with await echo() as model:
            source = source_of(kind, [(1, 2), (3,), [4, 5], ()])
            assert [y async for y in model.map(source)] == [(1, 2), 3, [4, 5], ()]

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
def test_source_is_pulled_only_while_few_results_are_outstanding(run, kind, ordered):
    async def main():
        async with await echo() as model:
            pulled = []
            model.hold()
            source = source_of(kind, range(100), pulled)
            results = model.map(source, in_flight=3, ordered=ordered)
            assert pulled == []
            first = asyncio.ensure_future(anext(results))
            await model.begun(1)
            await turns()
            assert pulled == [0, 1, 2]
            model.release()
            assert await first == 0
            await turns()
            # One was handed out: an async source goes on meanwhile, an iterable when
            # the next result is asked for.
            assert len(pulled) == (4 if kind == "async iterable" else 3)
            assert [y async for y in results] == list(range(1, 100))
            assert len(pulled) == 100

    run(main)


def test_default_in_flight_is_twice_what_the_instances_take(run):
    async def main():
        for options, expected in (
            ({}, 16),
            ({"instances": 20}, 40),
            ({"instances": 3, "batching": ml.Batching(max_rows=8)}, 48),
        ):
            async with await echo(**options) as model:
                pulled = []
                model.hold()
                results = model.map(
                    source_of("iterable", map(np.atleast_1d, range(100)), pulled)
                )
                task = asyncio.ensure_future(anext(results))
                await model.begun(1)
                assert len(pulled) == expected
                model.release()
                await task
                await results.aclose()

    run(main)


def test_unordered_hands_out_what_completes_first(run):
    async def main():
        def wait(event):
            event.wait()
            return event.n

        async with ml.load(wait, instances=2) as model:
            events = [threading.Event() for _ in range(3)]
            for n, event in enumerate(events):
                event.n = n
            results = model.map(events, ordered=False)
            events[1].set()
            assert await anext(results) == 1
            events[2].set()
            assert await anext(results) == 2
            events[0].set()
            assert await anext(results) == 0
            assert [y async for y in results] == []

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_ready_results_do_not_wait_for_an_async_source(run, ordered):
    async def main():
        async with await echo() as model:
            go_on = asyncio.Event()

            async def source():
                yield 1
                yield 2
                await go_on.wait()
                yield 3

            results = model.map(source(), ordered=ordered)
            assert [await anext(results), await anext(results)] == [1, 2]
            go_on.set()
            assert [y async for y in results] == [3]

    run(main)


# --- errors ---


@pytest.mark.parametrize("kind", SOURCES)
def test_failing_request_raises_in_its_place_and_the_rest_is_cancelled(run, kind):
    async def main():
        async with await echo() as model:
            model.poison(5.0)
            pulled, results = [], []
            items = [np.float64([n]) for n in range(100)]
            with pytest.raises(ml.BackendError, match="holds 5"):
                async for y in model.map(source_of(kind, items, pulled), in_flight=8):
                    results.append(y.item())
            assert results == [0, 1, 2, 3, 4]
            assert len(pulled) <= 13
            await model.close()
            stats = model.stats()
            assert stats.completed + stats.failed + stats.cancelled >= stats.submitted

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_several_failures_leave_no_exception_unretrieved(run, kind):
    async def main():
        async with await echo() as model:
            model.hold()
            model.fail(100)
            results = model.map(source_of(kind, range(20)), in_flight=10)
            task = asyncio.ensure_future(anext(results))
            await model.begun(1)
            model.release()
            with pytest.raises(ml.BackendError):
                await task
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_wrong_input_raises_in_its_place(run, kind):
    async def main():
        async with await echo() as model:
            results = []
            with pytest.raises(TypeError, match="input"):
                async for y in model.map(source_of(kind, [1, 2, object(), 3])):
                    results.append(y)
            assert results == [1, 2]

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
def test_source_that_raises_does_so_in_its_place(run, kind, ordered):
    async def main():
        async with await echo() as model:

            def failing():
                yield from (1, 2, 3)
                raise OSError("the source broke")

            results = []
            source = source_of(kind, failing())
            with pytest.raises(OSError, match="the source broke"):
                async for y in model.map(source, ordered=ordered):
                    results.append(y)
            assert results == [1, 2, 3][: len(results)]
            assert len(results) == 3 or not ordered

    run(main)


def test_closed_model_raises_after_what_it_accepted(run):
    async def main():
        model = await echo()
        results = model.map(range(10), in_flight=2)
        assert await anext(results) == 0
        await model.close()
        assert await anext(results) == 1
        with pytest.raises(ml.ModelClosed):
            await anext(results)

    run(main)


# --- the end ---


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
def test_aclose_cancels_what_is_outstanding(run, kind, ordered):
    async def main():
        async with await echo() as model:
            pulled = []
            source = source_of(kind, range(100), pulled)
            results = model.map(source, in_flight=10, ordered=ordered)
            assert await anext(results) == 0
            model.hold()
            await turns()
            await results.aclose()
            before = len(pulled)
            model.release()
            await model.close()
            assert model.stats().waiting == 0
            assert len(pulled) == before <= 11
            assert [y async for y in results] == []

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_cancelling_the_task_cancels_what_is_outstanding(run, kind):
    async def main():
        async with await echo() as model:
            model.hold()

            async def iterate():
                async for _ in model.map(source_of(kind, range(100)), in_flight=10):
                    raise AssertionError

            task = asyncio.ensure_future(iterate())
            await model.begun(1)
            await turns()
            assert model.stats().waiting == 9
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert model.stats().waiting == 0
            assert model.stats().cancelled == 10
            model.release()

    run(main)


@pytest.mark.parametrize("kind", SOURCES)
def test_iteration_that_is_left_is_cleaned_up_when_collected(run, kind):
    async def main():
        async with await echo() as model:
            async for y in model.map(source_of(kind, range(100)), in_flight=4):
                assert y == 0
                model.hold()
                break
            gc.collect()
            await turns()
            assert model.stats().waiting == 0
            model.release()

    run(main)


@pytest.mark.parametrize(
    "how", ["to the end", "aclose", "failure", "cancelled", "early"]
)
def test_async_source_is_closed_in_the_task_that_pulled_it(run, how):
    async def main():
        async with await echo() as model:
            tasks = []

            class Source:
                def __init__(self):
                    self.n = 0

                def __aiter__(self):
                    return self

                async def __anext__(self):
                    tasks.append(asyncio.current_task())
                    await asyncio.sleep(0)
                    self.n += 1
                    if self.n > 5:
                        raise StopAsyncIteration
                    return self.n

                async def aclose(self):
                    await asyncio.sleep(0)
                    tasks.append(asyncio.current_task())
                    tasks.append("closed")

            results = model.map(Source(), in_flight=2)
            if how == "to the end":
                assert [y async for y in results] == [1, 2, 3, 4, 5]
            elif how == "aclose":
                async with contextlib.aclosing(results):
                    await anext(results)
            elif how == "failure":
                model.fail(1)
                with pytest.raises(ml.BackendError):
                    await anext(results)
            else:
                model.hold()
                task = asyncio.ensure_future(anext(results))
                await turns(20 if how == "cancelled" else 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                model.release()
            assert tasks[-1] == "closed"
            assert tasks.count("closed") == 1
            if how != "early":
                assert len(set(tasks)) == 2

    run(main)


def test_source_whose_close_fails_says_so(run):
    async def main():
        async with await echo() as model:

            async def source():
                try:
                    yield 1
                finally:
                    raise OSError("can't close")

            with pytest.raises(OSError, match="can't close"):
                assert [y async for y in model.map(source())] == [1]

    run(main)


def test_source_that_is_cancelled_by_itself_cancels_the_iteration(run):
    async def main():
        async with await echo() as model:

            async def source():
                yield 1
                raise asyncio.CancelledError

            with pytest.raises(asyncio.CancelledError):
                async for y in model.map(source()):
                    assert y == 1

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (((), {"in_flight": 0}), ValueError, "in_flight: expected 1 or more, got 0"),
        (((), {"in_flight": 1.5}), TypeError, "in_flight: expected an int, got float"),
        ((5, {}), TypeError, "source: expected an iterable or an async iterable, got"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(run, arguments, error, said):
    async def main():
        async with await echo() as model:
            source, options = arguments
            with pytest.raises(error, match=said):
                model.map(source, **options)

    run(main)
