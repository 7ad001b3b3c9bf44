"""The order of the queue, its bound, and what happens there."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def rows(n):
    """An input that `model.seen` tells from others."""
    return np.zeros(n, np.uint8)


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
            model.release()
            await asyncio.gather(*futures)
            assert model.seen == list(range(1, 31))
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


@pytest.mark.parametrize("when_full", ["wait", "reject"])
def test_bytes_are_bounded_in_either_mode(run, when_full):
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
