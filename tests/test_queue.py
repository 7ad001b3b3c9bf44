"""The order of the queue, its bound, and what happens there."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def rows(n):
    """An input that `model.seen` tells from others."""
    return np.zeros(n, np.uint8)


@contextlib.asynccontextmanager
async def busy(max_rows=1024, when_full="wait", *, batch=None):
    """A model that is inside a run, held: what is submitted waits until the release.
    `batch`: the rows of a run, where requests share it."""
    queue = ml.Queue(max_rows=max_rows, when_full=when_full)
    batching = ml.Batching(batch) if batch else None
    async with await echo(queue=queue, batching=batching) as model:
        model.hold()
        first = model.infer("first")
        await model.begun(1)
        yield model
        model.release()
        await first


def test_more_urgent_work_runs_first_and_equals_in_their_order(run):
    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(rows(1))]
            await model.begun(1)
            priorities = [0, 5, -3, 5, 0, 2**31 - 1, -(2**31), 5, 1]
            for n, priority in enumerate(priorities):
                futures.append(model.infer(rows(2 + n), priority=priority))
            model.release()
            await asyncio.gather(*futures)
            expected = sorted(range(9), key=lambda n: (-priorities[n], n))
            assert model.seen == [1] + [2 + n for n in expected]

    run(main)


def test_urgent_work_overtakes_what_was_sorted_long_ago(run):
    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(rows(n)) for n in range(1, 51)]
            await model.begun(1)
            model.release(10)
            await model.begun(11)
            futures.append(model.infer(rows(99), priority=1))
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[11] == 99

    run(main)


def test_work_past_the_bound_waits_and_is_served_in_its_order(run):
    async def main():
        async with await echo(queue=ml.Queue(max_rows=2)) as model:
            model.hold()
            futures = [model.infer(rows(n)) for n in range(1, 31)]
            await model.begun(1)
            assert model.stats().waiting == 29
            assert model.stats().parked == 27  # and 2 are in the queue
            model.release(10)
            await model.begun(11)
            assert (model.stats().waiting, model.stats().parked) == (19, 17)
            futures[-1].cancel()
            assert (model.stats().waiting, model.stats().parked) == (18, 16)
            model.release()
            await asyncio.gather(*futures[:-1])
            assert (model.stats().waiting, model.stats().parked) == (0, 0)
            assert model.seen == list(range(1, 30))
            assert model.stats().rejected == 0

    run(main)


def test_work_parked_past_the_bound_can_be_cancelled_and_expires(run):
    async def main():
        async with await echo(queue=ml.Queue(max_rows=1)) as model:
            model.hold()
            futures = [model.infer(rows(n)) for n in range(1, 5)]
            late = model.infer(rows(5), timeout=0.01)
            await model.begun(1)
            futures[2].cancel()
            with pytest.raises(ml.DeadlineExceeded):
                await late
            model.release()
            await asyncio.gather(*futures, return_exceptions=True)
            assert model.seen == [1, 2, 4]

    run(main)


def test_reject_refuses_through_the_future_never_at_the_call(run):
    async def main():
        queue = ml.Queue(max_rows=3, when_full="reject")
        async with await echo(name="small", queue=queue) as model:
            model.hold()
            first = model.infer(rows(1))
            await model.begun(1)
            futures = [model.infer(rows(n)) for n in range(2, 10)]
            assert [future.done() for future in futures] == [False] * 3 + [True] * 5
            model.release()
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            refused = outcomes[3:]
            assert {type(outcome) for outcome in refused} == {ml.QueueFull}
            assert "the queue of model 'small' is full" in str(refused[0])
            assert "at most 3 rows" in str(refused[0])
            await first
            assert model.seen == [1, 2, 3, 4]
            assert model.stats().rejected == 5
            assert await model.infer(1) == 1  # there is room again

    run(main)


def test_cancelled_and_expired_work_makes_room(run):
    async def main():
        queue = ml.Queue(max_rows=2, when_full="reject")
        async with await echo(queue=queue) as model:
            model.hold()
            first = model.infer(rows(1))
            await model.begun(1)
            cancelled = model.infer(rows(2))
            expired = model.infer(rows(3), timeout=0.01)
            assert isinstance(model.infer(rows(9)).exception(), ml.QueueFull)
            cancelled.cancel()
            await asyncio.wait([expired])
            assert isinstance(expired.exception(), ml.DeadlineExceeded)
            assert model.stats().waiting == 0
            futures = [model.infer(rows(n)) for n in (4, 5)]
            model.release()
            await asyncio.gather(first, *futures)
            assert model.seen == [1, 4, 5]

    run(main)


# --- parked ---


def test_parked_work_is_admitted_first_come_first_served_in_rows(run):
    async def main():
        async with busy(4, batch=32) as model:
            futures = [model.infer(rows(n)) for n in (3, 2, 1, 4)]
            assert model.stats().waiting == 10
            model.release()
            await asyncio.gather(*futures)
            # The third would have fitted beside the first, but waits for the second.
            assert model.seen[1:] == [3, 3, 4]

    run(main)


def test_parked_work_is_not_overtaken_by_more_urgent_work(run):
    async def main():
        async with busy(1) as model:
            futures = [model.infer(rows(n), priority=n) for n in range(2, 8)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [2, 3, 4, 5, 6, 7]

    run(main)


def test_work_is_ordered_by_urgency_once_it_is_admitted(run):
    async def main():
        async with busy(3) as model:
            futures = [model.infer(rows(n), priority=n) for n in range(2, 9)]
            model.release()
            await asyncio.gather(*futures)
            # 2, 3, 4 are in; each that leaves makes room for one.
            assert model.seen[1:] == [4, 5, 6, 7, 8, 3, 2]

    run(main)


@pytest.mark.parametrize("sizes", [(6, 1), (1, 6, 1), (6, 6), (9, 1, 9)])
def test_request_larger_than_the_bound_gets_in_alone(run, sizes):
    async def main():
        async with busy(4, batch=16) as model:
            futures = [model.infer(rows(n)) for n in sizes]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == list(sizes)
            assert model.stats().rejected == 0

    run(main)


def test_cancelled_while_parked_it_is_no_longer_in_the_way(run):
    async def main():
        async with busy(4, batch=32) as model:
            futures = [model.infer(rows(n)) for n in (3, 2, 1)]
            assert model.stats().waiting == 6  # sorted by now
            futures[1].cancel()
            model.release()
            await asyncio.wait(futures)
            assert model.seen[1:] == [4]
            assert model.stats().cancelled == 1

    run(main)


def test_expired_while_parked_it_is_no_longer_in_the_way(run):
    async def main():
        async with busy(4, batch=32) as model:
            futures = [model.infer(rows(3))]
            late = model.infer(rows(2), timeout=0.01)
            futures.append(model.infer(rows(1)))
            with pytest.raises(ml.DeadlineExceeded):
                await late
            assert model.stats().waiting == 4
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [4]
            assert model.stats().expired == 1

    run(main)


def test_cancelled_in_any_order_parked_work_leaves_what_is_left_in_order(run):
    async def main():
        async with busy(2) as model:
            futures = [model.infer(rows(n)) for n in range(2, 22)]
            for n in (19, 0, 10, 5, 3, 4, 18, 1, 11):
                futures[n].cancel()
            model.release()
            await asyncio.wait(futures)
            kept = [2, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17]
            assert model.seen[1:] == [2 + n for n in kept]

    run(main)


def test_close_serves_what_is_parked_or_answers_it(run):
    async def main():
        for drain in (True, False):
            async with busy(1) as model:
                futures = [model.infer(rows(n)) for n in range(2, 7)]
                closing = asyncio.ensure_future(model.close(drain=drain))
                await asyncio.sleep(0)
                model.release()
                await closing
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
                if drain:
                    assert [len(x) for x in outcomes] == [2, 3, 4, 5, 6]
                else:
                    assert {type(error) for error in outcomes} == {ml.ModelClosed}

    run(main)


# --- the lowest go ---


def is_dropped(future, bound):
    error = future.exception()
    return isinstance(error, ml.QueueFull) and str(error) == (
        "dropped for a request of higher or equal priority, or one that came first: "
        f"the queue of model 'echo' is full, it holds at most {bound} rows "
        "(Queue(when_full='drop_lowest'))"
    )


def test_drop_lowest_drops_the_newest_of_the_lowest_priority(run):
    async def main():
        async with busy(3, "drop_lowest") as model:
            futures = [
                model.infer(rows(2 + n), priority=priority)
                for n, priority in enumerate([0, 1, 0, 2, 1])
            ]
            await asyncio.wait([futures[2], futures[0]])
            assert is_dropped(futures[2], 3)  # for the fourth
            assert is_dropped(futures[0], 3)  # for the fifth
            assert model.stats().waiting == 3
            assert model.stats().rejected == 2
            model.release()
            await asyncio.gather(*(futures[n] for n in (1, 3, 4)))
            assert model.seen[1:] == [5, 3, 6]

    run(main)


@pytest.mark.parametrize("priority", [-1, 0])
def test_drop_lowest_drops_the_newcomer_where_nothing_is_lower(run, priority):
    async def main():
        async with busy(2, "drop_lowest") as model:
            futures = [model.infer(rows(n)) for n in (2, 3)]
            newcomer = model.infer(rows(4), priority=priority)
            await asyncio.wait([newcomer])
            assert is_dropped(newcomer, 2)
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [2, 3]

    run(main)


def test_drop_lowest_drops_as_many_as_the_rows_need(run):
    async def main():
        async with busy(8, "drop_lowest", batch=32) as model:
            futures = [model.infer(rows(2), priority=p) for p in (2, 0, 1, 0)]
            large = model.infer(rows(5), priority=1)
            await asyncio.wait([futures[1], futures[3], large])
            # Both of priority 0, and that isn't enough: 4 + 5 rows. The newest goes.
            assert is_dropped(futures[1], 8)
            assert is_dropped(futures[3], 8)
            assert is_dropped(large, 8)
            model.release()
            await asyncio.gather(futures[0], futures[2])
            assert model.seen[1:] == [4]
            assert model.stats().rejected == 3

    run(main)


def test_drop_lowest_drops_nothing_for_a_request_that_never_fits(run):
    async def main():
        async with busy(4, "drop_lowest", batch=32) as model:
            futures = [model.infer(rows(2)) for _ in range(2)]
            large = model.infer(rows(5), priority=9)
            assert isinstance(large.exception(), ml.QueueFull)
            assert "at most 4 rows" in str(large.exception())
            assert "this request has 5 rows" in str(large.exception())
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [4]

    run(main)


def test_rejected_rows_are_counted_with_batching(run):
    async def main():
        async with busy(8, "reject", batch=32) as model:
            futures = [model.infer(rows(n)) for n in (5, 4, 3, 1)]
            assert [future.done() for future in futures] == [False, True, False, True]
            assert "this request has 4 rows" in str(futures[1].exception())
            assert isinstance(futures[3].exception(), ml.QueueFull)
            model.release()
            await asyncio.gather(futures[0], futures[2])
            assert model.seen[1:] == [8]

    run(main)


@pytest.mark.parametrize("when_full", ["wait", "reject", "drop_lowest"])
def test_bytes_are_bounded_in_every_mode(run, when_full):
    async def main():
        queue = ml.Queue(max_bytes=1000, when_full=when_full)
        async with await echo(queue=queue) as model:
            model.hold()
            first = model.infer(rows(900))
            await model.begun(1)  # what runs doesn't wait
            futures = [model.infer(rows(400)) for _ in range(3)]
            small = model.infer(rows(200))
            assert isinstance(futures[2].exception(), ml.QueueFull)
            assert "at most 1024 rows and 1000 bytes" in str(futures[2].exception())
            assert model.stats().waiting_bytes == 1000
            futures[0].cancel()
            again = model.infer(rows(400))
            assert not again.done()
            model.release()
            await asyncio.gather(first, small, again, futures[1])
            assert model.stats().waiting_bytes == 0
            assert model.seen == [900, 400, 200, 400]

    run(main)


@pytest.mark.parametrize(
    "x",
    [bytes(1001), "x" * 1001, rows(1001), [rows(500), (b"", rows(501))]],
    ids=["bytes", "text", "array", "structure"],
)
def test_request_larger_than_the_bound_is_refused_by_itself(run, x):
    async def main():
        async with await echo(queue=ml.Queue(max_bytes=1000)) as model:
            with pytest.raises(ml.QueueFull, match="1001 bytes"):
                await model.infer(x)
            assert await model.infer(rows(1000)) is not None

    run(main)


def test_queue_full_that_nobody_looks_at_is_reported(run):
    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: told.append(context)
        )
        async with await echo(queue=ml.Queue(max_bytes=1)) as model:
            model.infer(rows(2))
        assert isinstance(told[0]["exception"], ml.QueueFull)

    run(main)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_rows": 0}, {"max_rows": -1}, {"max_rows": 1.5}, {"max_rows": None}),
        *({"max_bytes": 0}, {"max_bytes": "1"}),
        *({"when_full": "drop"}, {"when_full": None}),
    ],
    ids=str,
)
def test_queue_says_what_it_expected(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^Queue: {name}: expected"):
        ml.Queue(**wrong)


def test_queue_is_a_value():
    assert ml.Queue() == ml.Queue(1024, 2**30, "wait")
    with pytest.raises(AttributeError):
        ml.Queue().max_rows = 5
