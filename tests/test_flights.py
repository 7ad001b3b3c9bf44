"""Several runs of an instance in flight: a model for tests whose instances are like an
accelerator's, told and asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import numpy as np
import pytest
from batches import FOR_EVER, outcomes

import pyasyncml as ml
from pyasyncml.testing import echo

REQUESTS = int(os.environ.get("PYASYNCML_STRESS", "20000")) // 10
POISON = -1.0


@pytest.fixture(params=["told", "asked"])
def flying(request):
    """Makes echo models with instances of that kind."""

    def make(in_flight=3, **options):
        return echo(in_flight=in_flight, polled=request.param == "asked", **options)

    return make


@contextlib.asynccontextmanager
async def held(making, up, rows=1):
    """A model with so many runs of one request each up, held. Batches take off beside
    others when they are full: then `rows` are a run's most."""
    async with await making as model:
        model.hold()
        first = []
        for n in range(up):
            first.append(model.infer(row(n, rows)))
            await model.begun(n + 1)
        yield model, first
        model.release()


def row(n, rows=1):
    return np.full((rows, 2), n, np.float32)


async def until(what):
    while not what():
        await asyncio.sleep(0)


# --- how many, and in which order ---


def test_as_many_runs_as_an_instance_can_have_are_up_at_once(run, flying):
    async def main():
        async with await flying(3) as model:
            model.hold()
            futures = [model.infer(n) for n in range(7)]
            await model.begun(3)
            await until(lambda: model.stats().waiting == 4)
            assert model.runs == 3
            assert not any(future.done() for future in futures)
            for n in range(4):
                model.release(1)
                await model.begun(4 + n)  # room for one more
                assert await futures[n] == n
                assert model.runs == 4 + n
            model.release()
            assert await asyncio.gather(*futures) == list(range(7))

    run(main)


def test_work_that_comes_while_runs_are_up_is_begun_at_once(run, flying):
    async def main():
        async with held(flying(4), 4) as (model, first):
            assert not any(future.done() for future in first)
            model.release()
            for n, future in enumerate(first):
                assert np.array_equal(await future, row(n))

    run(main)


@pytest.mark.parametrize("in_flight", [0, 1])
def test_fewer_than_two_is_one_after_the_other(run, in_flight):
    async def main():
        async with await echo(in_flight=in_flight) as model:
            model.hold()
            futures = [model.infer(n) for n in range(3)]
            await model.begun(1)
            await until(lambda: model.stats().waiting == 2)
            assert model.runs == 1
            model.release()
            assert await asyncio.gather(*futures) == [0, 1, 2]

    run(main)


def test_no_number_of_runs_is_an_error():
    with pytest.raises(ValueError, match="in_flight"):
        asyncio.run(echo(in_flight=-1))


def test_answers_come_in_the_order_of_the_runs(run, flying):
    async def main():
        answered = []
        async with await flying(5) as model:
            futures = [model.infer(n) for n in range(200)]
            for n, future in enumerate(futures):
                future.add_done_callback(lambda _, n=n: answered.append(n))
            assert await asyncio.gather(*futures) == list(range(200))
            await until(lambda: len(answered) == 200)
        assert answered == list(range(200))

    run(main)


def test_the_more_urgent_passes_what_waits_and_not_what_is_up(run, flying):
    async def main():
        async with held(flying(2), 2) as (model, first):
            late = model.infer(row(7, 3), priority=-1)
            early = model.infer(row(8, 4), priority=1)
            model.release()
            await asyncio.gather(*first, late, early)
            assert model.seen == [1, 1, 4, 3]

    run(main)


def test_instances_have_as_many_each(run, flying):
    async def main():
        async with await flying(2, instances=3) as model:
            model.hold()
            futures = [model.infer(n) for n in range(8)]
            await model.begun(6)
            await until(lambda: model.stats().waiting == 2)
            assert model.stats().running == 3  # instances
            model.release()
            assert await asyncio.gather(*futures) == list(range(8))

    run(main)


# --- batches ---


def test_what_waits_while_two_are_up_shares_a_run(run, flying):
    async def main():
        making = flying(4, batching=ml.Batching(max_rows=8))
        async with held(making, 2, rows=8) as (model, first):
            others = [model.infer(row(n)) for n in range(10)]
            await until(lambda: model.stats().waiting == 10)
            model.release()
            found = await asyncio.gather(*others)
            assert all(np.array_equal(y, row(n)) for n, y in enumerate(found))
            assert model.seen == [8, 8, 8, 2]
            await asyncio.gather(*first)

    run(main)


def test_a_batch_grows_while_the_device_is_busy(run, flying):
    """It is the next to run in any case: the later it is begun, the more share it."""

    async def main():
        making = flying(4, batching=ml.Batching(max_rows=8))
        async with held(making, 1) as (model, first):
            others = []
            for n in range(7):
                others.append(model.infer(row(n)))
                await until(lambda: model.stats().waiting == len(others))
            assert model.runs == 1
            others.append(model.infer(row(7)))
            await model.begun(2)  # it is full; nothing has ended
            last = [model.infer(row(n)) for n in range(8, 11)]
            await until(lambda: model.stats().waiting == 3)
            assert not any(future.done() for future in first)
            model.release()
            found = await asyncio.gather(*others, *last)
            assert all(np.array_equal(y, row(n)) for n, y in enumerate(found))
            assert model.seen == [1, 8, 3]
            await asyncio.gather(*first)

    run(main)


def test_who_fills_batches_does_not_pass_who_waits_for_longer(run, flying):
    async def main():
        making = flying(4, batching=ml.Batching(max_rows=4))
        async with held(making, 1) as (model, first):
            lone = model.infer(np.ones((1, 3), np.float32))
            await until(lambda: model.stats().waiting == 1)
            full = model.infer(row(2, 4))
            await model.begun(2)
            model.release()
            await asyncio.gather(*first, lone, full)
            assert model.seen == [1, 1, 4]

    run(main)


def test_each_run_has_buffers_of_its_own(run, flying):
    """Batches are gathered while those before are still being read."""

    async def main():
        rng = random.Random(0)
        async with await flying(4, batching=ml.Batching(max_rows=16)) as model:
            asked = []
            for n in range(REQUESTS):
                x = row(n, rng.randint(1, 20))
                asked.append((x, model.infer(x)))
                if rng.random() < 0.05:
                    await asyncio.sleep(0)
            for x, future in asked:
                assert np.array_equal(await future, x)
            assert max(model.seen) <= 16

    run(main)


def test_a_request_of_more_rows_than_a_run_may_have_is_run_alone(run, flying):
    async def main():
        making = flying(3, batching=ml.Batching(max_rows=4))
        async with held(making, 2, rows=4) as (model, first):
            large = model.infer(row(5, 10))
            after = model.infer(row(6))
            model.release()
            assert np.array_equal(await large, row(5, 10))
            assert np.array_equal(await after, row(6))
            assert model.seen == [4, 4, 4, 4, 2, 1]
            assert all(future.done() for future in first)

    run(main)


def test_a_batch_that_waits_for_more_waits_for_an_idle_device_too(run, flying):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=0.02)
        async with await flying(3, batching=batching) as model:
            model.hold()
            first = model.infer(row(0, 4))
            await model.begun(1)
            second = model.infer(row(1))
            await asyncio.sleep(0.04)  # its delay is over; nothing tells of that
            third = model.infer(row(2))
            await until(lambda: model.stats().waiting == 2)
            assert model.runs == 1
            model.release()
            await asyncio.gather(first, second, third)
            assert model.seen == [4, 2]

    run(main)


def test_a_batch_that_waits_for_more_goes_when_the_model_is_closed(run, flying):
    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        model = await flying(3, batching=batching)
        model.hold()
        first = model.infer(row(0, 4))
        await model.begun(1)
        second = model.infer(row(1))
        closing = model.close()
        await model.begun(2)
        model.release()
        await asyncio.gather(first, second, closing)

    run(main)


# --- who gives up ---


def test_cancelled_in_flight_is_settled_at_once_and_its_result_dropped(run, flying):
    async def main():
        async with held(flying(3), 3) as (model, first):
            assert first[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await first[1]
            model.release()
            assert np.array_equal(await first[0], row(0))
            assert np.array_equal(await first[2], row(2))
            assert model.stats().cancelled == 1

    run(main)


def test_a_timeout_in_flight_is_kept(run, flying):
    async def main():
        async with await flying(2) as model:
            model.hold()
            late, other = model.infer(1, timeout=0.02), model.infer(2)
            await model.begun(2)
            with pytest.raises(ml.DeadlineExceeded):
                await late
            assert not other.done()
            model.release()
            assert await other == 2
            assert model.stats().completed == 2  # it was run, for nobody

    run(main)


def test_what_is_late_before_its_run_is_not_run(run, flying):
    async def main():
        async with held(flying(2), 2) as (model, first):
            late = model.infer(row(5), timeout=0.01)
            with pytest.raises(ml.DeadlineExceeded):
                await late
            model.release()
            await asyncio.gather(*first)
            assert model.runs == 2

    run(main)


def test_what_a_run_costs_is_learned_without_the_time_behind_others(run, flying):
    """Four at a time of 20 ms each: none is thought to take 80 ms."""

    async def main():
        async with await flying(4, delay=0.02) as model:
            begun = time.monotonic()
            await asyncio.gather(*(model.infer(n) for n in range(12)))
            stats = model.stats()
            assert stats.run_p50 < 0.06
            # A device that is one was busy no longer than there was time.
            assert 0.2 < stats.busy[0] < time.monotonic() - begun

    run(main)


# --- what goes wrong ---


def test_a_failure_is_the_error_of_its_own_request(run, flying):
    async def main():
        async with held(flying(3), 3) as (model, first):
            model.poison(1.0)
            model.release()
            found = await outcomes(first)
            assert [type(y) for y in found] == [np.ndarray, ml.BackendError, np.ndarray]
            stats = model.stats()
            assert (stats.completed, stats.failed, stats.runs) == (2, 1, 3)

    run(main)


@pytest.mark.parametrize("at", [0, 5, 7])
def test_one_poisoned_row_of_a_batch_fails_alone(run, flying, at):
    async def main():
        making = flying(3, batching=ml.Batching(max_rows=8))
        async with held(making, 2, rows=8) as (model, first):
            model.poison(POISON)
            batch = [model.infer(row(POISON if n == at else n)) for n in range(8)]
            others = [model.infer(row(n)) for n in range(8, 16)]
            await until(lambda: model.stats().waiting == 16)
            model.release()
            found = await outcomes(batch + others)
            assert type(found[at]) is ml.BackendError
            for n, y in enumerate(found):
                assert n == at or np.array_equal(y, row(n))
            await asyncio.gather(*first)
            # The other batch was up when the first one failed, and landed before that
            # was run again in halves: 4 4, then twice the halves of the one that fails.
            assert sorted(model.seen[2:]) == sorted([8, 8, 4, 4, 2, 2, 1, 1])
            assert model.stats().failed == 1

    run(main)


def test_a_batch_out_of_memory_runs_again_with_fewer_rows(run, flying):
    async def main():
        making = flying(3, batching=ml.Batching(max_rows=8))
        async with held(making, 2, rows=8) as (model, first):
            model.limit_rows(2)
            batch = [model.infer(row(n)) for n in range(8)]
            await until(lambda: model.stats().waiting == 8)
            model.release()
            found = await asyncio.gather(*batch)
            assert all(np.array_equal(y, row(n)) for n, y in enumerate(found))
            assert model.stats().failed == 0
            before = model.runs
            again = [model.infer(row(n)) for n in range(8)]
            await asyncio.gather(*again, *first)
            assert max(model.seen[before:]) <= 2  # learned

    run(main)


def test_memory_that_is_missing_for_one_alone_is_its_error(run, flying):
    async def main():
        async with held(flying(3), 3) as (model, first):
            model.fail(6, memory=True)  # each run, and each again alone
            model.release()
            found = await outcomes(first)
            assert {type(y) for y in found} == {ml.OutOfMemory}
            assert model.runs == 6

    run(main)


def test_a_model_goes_on_after_failures_of_all_kinds(run, flying):
    async def main():
        async with await flying(4, batching=ml.Batching(max_rows=4)) as model:
            for n in range(20):
                model.fail(3, memory=n % 2 == 0)
                await outcomes([model.infer(row(i)) for i in range(20)])
                model.fail(0)
                assert np.array_equal(await model.infer(row(n)), row(n))

    run(main)


# --- the end ---


def test_close_serves_what_is_up_and_what_waits(run, flying):
    async def main():
        model = await flying(3)
        model.hold()
        futures = [model.infer(n) for n in range(9)]
        await model.begun(3)
        closing = model.close()
        assert not closing.done()
        model.release()
        await closing
        assert [future.result() for future in futures] == list(range(9))

    run(main)


def test_close_without_draining_fails_what_waits_and_serves_what_is_up(run, flying):
    async def main():
        model = await flying(3)
        model.hold()
        futures = [model.infer(n) for n in range(9)]
        await model.begun(3)
        closing = model.close(drain=False)
        found = await outcomes(futures[3:])
        assert {type(y) for y in found} == {ml.ModelClosed}
        assert not any(future.done() for future in futures[:3])
        model.release()
        assert await asyncio.gather(*futures[:3]) == [0, 1, 2]
        await closing
        assert model.runs == 3

    run(main)


def test_reload_with_runs_up(run, flying):
    async def main():
        async with await flying(3) as model:
            model.hold()
            old = [model.infer(n) for n in range(5)]
            await model.begun(3)
            reloading = asyncio.ensure_future(model.reload())
            await until(lambda: model.runs == 0)  # the new one's
            new = [model.infer(n) for n in range(5, 10)]
            assert await asyncio.gather(*new) == list(range(5, 10))
            assert not any(future.done() for future in old)
            model.release()
            assert await asyncio.gather(*old) == list(range(5))
            await reloading

    run(main)


def test_a_loop_that_closes_with_runs_up_leaves_nothing_behind(make_loop, flying):
    model = None

    async def begin():
        nonlocal model
        model = await flying(3)
        model.hold()
        for n in range(5):
            model.infer(n)
        await model.begun(3)

    async def end():
        model.release()
        await model.infer(1)
        await model.close()
        assert model.stats().running == 0

    loop = make_loop()
    loop.run_until_complete(begin())
    loop.close()
    other = make_loop()
    other.run_until_complete(end())
    other.close()


# --- what is counted ---


def test_one_instance_is_running_however_many_are_up(run, flying):
    async def main():
        async with held(flying(3), 3) as (model, first):
            assert model.stats().running == 1
            model.release()
            await asyncio.gather(*first)
            await until(lambda: model.stats().running == 0)
            stats = model.stats()
            assert (stats.completed, stats.runs, stats.rows) == (3, 3, 3)

    run(main)


def test_health_tells_of_a_run_that_takes_long(run, flying):
    async def main():
        async with held(flying(2), 2) as (model, first):
            begun = time.monotonic()
            await until(lambda: time.monotonic() > begun + 0.02)
            assert model.health().longest_run >= 0.02
            released = time.monotonic()
            model.release(1)
            await first[0]
            # The second is on since then.
            longest = model.health().longest_run
            assert longest <= time.monotonic() - released
            model.release()
            await first[1]

    run(main)


# --- everything at once ---


@pytest.mark.parametrize("seed", range(4))
def test_every_request_has_its_own_answer_whatever_happens(run, flying, seed):
    rng = random.Random(seed)

    async def main():
        making = flying(
            rng.randint(2, 6),
            instances=rng.randint(1, 2),
            batching=ml.Batching(max_rows=rng.randint(1, 9)),
        )
        async with await making as model:
            asked = []
            for n in range(REQUESTS):
                x = row(n, rng.choice((1, 1, 1, 2, 3, 12)))
                if rng.random() < 0.1:
                    x = f"{n}"  # runs alone
                options = {"priority": rng.randint(-1, 1)}
                if rng.random() < 0.1:
                    options["timeout"] = rng.choice((1e-4, 1e-3, 10.0))
                future = model.infer(x, **options)
                asked.append((x, future))
                dice = rng.random()
                if dice < 0.05:
                    future.cancel()
                elif dice < 0.10:
                    asyncio.get_running_loop().call_soon(future.cancel)
                elif dice < 0.12:
                    model.fail(1, memory=dice < 0.11)
                elif dice < 0.13:
                    model.poison(float(n))
                elif dice < 0.14:
                    model.limit_rows(rng.randint(0, 5))
                elif dice < 0.2:
                    await asyncio.sleep(0)
            await asyncio.wait([future for _, future in asked])
            kinds = set()
            for x, future in asked:
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    assert np.array_equal(future.result(), x)
                kinds.add(type(error))
            allowed = {ml.BackendError, ml.OutOfMemory, ml.DeadlineExceeded}
            assert kinds <= allowed | {type(None)}
            stats = model.stats()
            answered = stats.completed + stats.failed + stats.expired + stats.cancelled
            assert answered >= stats.submitted
            assert stats.waiting == 0

    run(main)
