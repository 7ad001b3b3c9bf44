"""When a batch begins, and who is in it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from batches import FOR_EVER, busy, counted, ones, outcomes

import pyasyncml as ml
from pyasyncml.testing import echo

# --- priorities, deadlines, ageing ---


def test_more_urgent_requests_of_a_group_run_first(run):
    async def main():
        async with busy(max_rows=4) as model:
            order = []
            for n, priority in enumerate([0, 1, 0, 2, 1, 0, 2, 0]):
                future = model.infer(counted(1, 1, first=n), priority=priority)
                future.add_done_callback(lambda _, n=n: order.append(n))
            last = model.infer(ones(1, 1), priority=-1)
            model.release(2)
            await model.begun(3)
            while len(order) < 4:
                await asyncio.sleep(0)
            assert sorted(order) == [1, 3, 4, 6]
            model.release()
            await last
            assert sorted(order) == list(range(8))
            assert model.seen[1:] == [4, 4, 1]

    run(main)


def test_the_group_of_the_most_urgent_request_runs_first(run):
    async def main():
        async with busy(max_rows=8) as model:
            a, b, c = ones(1, 2), ones(2, 3), ones(3, 4)
            futures = [model.infer(x) for x in (a, b, c, b, b, b)]
            futures.append(model.infer(c, priority=1))
            futures.append(model.infer(b, priority=2))
            futures.append(model.infer("alone", priority=3))
            model.release()
            await asyncio.gather(*futures)
            # Those beside the leader come along, urgent or not.
            assert model.seen[1:] == [1, 8, 6, 1, 2]

    run(main)


def test_earlier_deadlines_run_first_within_a_priority(run):
    async def main():
        async with busy(max_rows=1) as model:
            order = []
            submitted = [(0, None), (0, 900), (0, 500), (1, None), (1, 800), (0, 700)]
            futures = []
            for n, (priority, timeout) in enumerate(submitted):
                x = ones(1, 1 + n)
                futures.append(model.infer(x, priority=priority, timeout=timeout))
                futures[n].add_done_callback(lambda _, n=n: order.append(n))
            model.release()
            await asyncio.gather(*futures)
            assert order == [4, 3, 2, 5, 1, 0]

    run(main)


@pytest.mark.parametrize("batching", [None, ml.Batching(max_rows=4)])
def test_request_that_has_seen_64_runs_begin_leads_every_eighth(run, batching):
    async def main():
        async with await echo(batching=batching) as model:
            model.hold()
            futures = [model.infer("first")]
            await model.begun(1)  # one run has begun
            futures += [model.infer(ones(n, 7), priority=-1) for n in (2, 3)]
            futures += [model.infer(ones(4, 1)) for _ in range(100)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen.index(2) == 71  # past 64, and 7 modulo 8
            assert model.seen.index(3) == 79
            assert set(model.seen) == {1, 2, 3, 4}

    run(main)


def test_aged_request_takes_the_urgent_of_its_group_along(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(ones(2, 7), priority=-1)]
            futures += [model.infer(ones(4, 1), priority=1) for _ in range(80)]
            futures += [model.infer(ones(1, 7), priority=p) for p in (-2, 0)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[71] == 4
            assert model.stats().runs == 82

    run(main)


# --- max_delay ---


def test_batch_that_is_not_full_waits_and_goes_at_once_when_it_is(run):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            futures = [model.infer(counted(1, 2, first=n)) for n in range(2)]
            assert await model.infer("x") == "x"  # alone: the instance is free
            futures.append(model.infer(counted(1, 2, first=2)))
            assert await model.infer("y") == "y"
            assert not any(future.done() for future in futures)
            assert model.stats().waiting == 3
            futures.append(model.infer(counted(1, 2, first=3)))
            for n, y in enumerate(await asyncio.gather(*futures)):
                assert np.array_equal(y, counted(1, 2, first=n))
            assert model.seen == [1, 1, 4]
            assert model.stats().releases["full"] == 1

    run(main)


def test_batch_that_is_not_full_goes_when_its_delay_has_passed(run):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=0.1)
        async with await echo(batching=batching) as model:
            futures = [model.infer(ones(1, 2)) for _ in range(3)]
            await asyncio.gather(*futures)
            assert model.seen == [3]
            assert model.stats().releases["delay"] == 1

    run(main)


def test_delay_counts_from_the_first_and_every_group_has_its_own(run):
    async def main():
        batching = ml.Batching(max_rows=2, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            a, b = model.infer(ones(1, 2)), model.infer(ones(1, 3))
            assert await model.infer("x") == "x"
            assert model.stats().waiting == 2
            await asyncio.gather(b, model.infer(ones(1, 3)))
            assert not a.done()
            await asyncio.gather(a, model.infer(ones(1, 2)))
            assert model.seen == [1, 2, 2]

    run(main)


def test_close_releases_a_batch_that_waits(run):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            futures = [model.infer(ones(1, 2)) for _ in range(3)]
            await model.close()
            assert all(future.done() for future in futures)
            await asyncio.gather(*futures)
            assert model.seen == [3]
            assert model.stats().releases["drained"] == 1

    run(main)


def test_close_without_drain_answers_a_batch_that_waits(run):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            futures = [model.infer(ones(1, 2)) for _ in range(3)]
            await model.close(drain=False)
            for outcome in await outcomes(futures):
                assert isinstance(outcome, ml.ModelClosed)
            assert model.runs == 0

    run(main)


def test_full_batch_goes_though_somebody_else_looked_at_the_queue_first():
    """A worker on its way to sleep missed what a look at the health had sorted in."""

    async def main():
        batching = ml.Batching(max_rows=2, max_delay=FOR_EVER)
        x = ones(1, 2)
        async with await echo(batching=batching) as model:
            for n in range(20_000):
                first = model.infer(x)
                for _ in range(n % 200):
                    pass  # until the worker has looked, or is about to
                second = model.infer(x)
                model.health()
                await asyncio.wait_for(asyncio.gather(first, second), 30)

    asyncio.run(main())


def test_cancelled_while_a_batch_waits_leaves_it(run):
    async def main():
        batching = ml.Batching(max_rows=3, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            futures = [model.infer(ones(1, 2)) for _ in range(2)]
            assert await model.infer("x") == "x"
            futures[0].cancel()
            futures += [model.infer(ones(1, 2)) for _ in range(2)]
            await outcomes(futures)
            assert model.seen == [1, 3]

    run(main)


def test_waiting_for_company_makes_nobody_late(run):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with await echo(batching=batching) as model:
            for _ in range(3):
                await model.infer(ones(1, 2), timeout=0.2)
            assert model.stats().expired == 0
            assert model.stats().releases["delay"] == 3

    run(main)
