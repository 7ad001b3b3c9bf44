"""A batch that fails: what is at fault fails, alone, and nothing else does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from batches import busy, outcomes

import pyasyncml as ml
from pyasyncml.testing import echo

POISON = -1.0


def row(n, rows=1):
    return np.full((rows, 2), n, np.float32)


def halves(rows, bad):
    """The rows of each run, where requests of one row fail whose index is in `bad`."""
    runs = [len(rows)]
    if bad & set(rows) and len(rows) > 1:
        middle = len(rows) // 2
        runs += halves(rows[:middle], bad) + halves(rows[middle:], bad)
    return runs


def halves_for_memory(rows, most, cap=None):
    """The rows of each run, where runs of more than `most` run out of memory, and the
    cap that they teach holds for those that follow."""
    cap = cap or [rows]
    runs = []
    if rows > cap[0]:
        half = -(-rows // cap[0]) // 2 * cap[0]
    elif rows > most:
        runs.append(rows)
        half = cap[0] = rows // 2
    else:
        return [rows]
    first = halves_for_memory(half, most, cap)
    return runs + first + halves_for_memory(rows - half, most, cap)


@pytest.mark.parametrize("at", [0, 1, 13, 16, 30, 31])
def test_one_poisoned_row_of_32_fails_alone_with_its_own_error(run, at):
    async def main():
        async with busy() as model:
            model.poison(POISON)
            inputs = [row(POISON if n == at else n) for n in range(32)]
            futures = [model.infer(x) for x in inputs]
            model.release()
            found = await outcomes(futures)
            error = found[at]
            assert type(error) is ml.BackendError
            assert "the input holds -1" in str(error)
            for n, (x, y) in enumerate(zip(inputs, found, strict=True)):
                assert n == at or np.array_equal(x, y)
            assert model.seen[1:] == halves(range(32), {at})
            stats = model.stats()
            assert (stats.completed, stats.failed) == (32, 1)
            assert model.health().ok

    run(main)


@pytest.mark.parametrize("bad", [{0, 1}, {7, 8}, {0, 31}, {3, 10, 11, 12, 25}])
def test_several_poisoned_rows_fail_and_their_neighbours_answer(run, bad):
    async def main():
        async with busy() as model:
            model.poison(POISON)
            futures = [model.infer(row(POISON if n in bad else n)) for n in range(32)]
            model.release()
            found = await outcomes(futures)
            failed = {n for n, y in enumerate(found) if isinstance(y, Exception)}
            assert failed == bad
            assert len({id(found[n]) for n in bad}) == len(bad)
            assert model.seen[1:] == halves(range(32), bad)

    run(main)


def test_every_row_poisoned_fails_with_an_error_each(run):
    async def main():
        async with busy(max_rows=8) as model:
            model.poison(POISON)
            futures = [model.infer(row(POISON)) for _ in range(8)]
            model.release()
            errors = await outcomes(futures)
            assert {type(error) for error in errors} == {ml.BackendError}
            assert len({id(error) for error in errors}) == 8
            assert model.seen[1:] == [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]
            assert model.stats().failed == 8
            model.poison(None)
            assert np.array_equal(await model.infer(row(3)), row(3))

    run(main)


def test_request_of_many_rows_fails_as_one(run):
    async def main():
        async with busy(max_rows=8) as model:
            model.poison(POISON)
            bad = row(0, rows=5)
            bad[4] = POISON
            futures = [model.infer(x) for x in (row(1, rows=2), bad, row(2))]
            model.release()
            good, error, other = await outcomes(futures)
            assert np.array_equal(good, row(1, rows=2))
            assert isinstance(error, ml.BackendError)
            assert np.array_equal(other, row(2))
            assert model.seen[1:] == [8, 2, 6, 5, 1]

    run(main)


def test_failure_that_passes_by_is_seen_by_nobody_who_shared(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(row(n)) for n in range(4)]
            model.release(1)
            await model.begun(2)
            model.fail(1, "hiccup")
            model.release()
            for n, y in enumerate(await asyncio.gather(*futures)):
                assert np.array_equal(y, row(n))
            assert model.seen[1:] == [4, 2, 2]

    run(main)


def test_request_that_runs_alone_is_not_tried_again(run):
    async def main():
        async with await echo(batching=ml.Batching(4)) as model:
            model.fail(1, "hiccup")
            with pytest.raises(ml.BackendError, match="hiccup"):
                await model.infer(row(1))
            assert model.seen == [1]

    run(main)


def test_answers_of_the_first_half_need_not_wait_for_the_second(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(row(n)) for n in range(4)]
            model.release(1)
            await model.begun(2)
            model.fail(1)
            model.release(2)  # the batch and its first half
            await asyncio.gather(*futures[:2])
            assert not futures[2].done()
            model.release()
            await asyncio.gather(*futures[2:])
            assert model.seen[1:] == [4, 2, 2]

    run(main)


# --- given up meanwhile ---


def test_what_was_given_up_is_not_tried_again(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(row(n)) for n in range(4)]
            model.release(1)
            await model.begun(2)
            model.fail(1)
            futures[0].cancel()
            futures[1].cancel()
            futures[3].cancel()
            model.release()
            await outcomes(futures)
            assert np.array_equal(futures[2].result(), row(2))
            assert all(futures[n].cancelled() for n in (0, 1, 3))
            assert model.seen[1:] == [4, 1]

    run(main)


def test_what_is_late_by_now_is_not_tried_again(run):
    async def main():
        async with busy(max_rows=4) as model:
            late = [model.infer(row(n), timeout=0.2) for n in range(2)]
            other = [model.infer(row(n)) for n in range(2, 4)]
            model.release(1)
            await model.begun(2)
            model.fail(1)
            for error in await outcomes(late):
                assert isinstance(error, ml.DeadlineExceeded)
            model.release()
            await asyncio.gather(*other)
            assert model.seen[1:] == [4, 2]
            assert model.stats().expired == 2

    run(main)


# --- memory ---


def test_batch_that_runs_out_of_memory_is_halved_and_teaches_the_cap(run):
    async def main():
        async with busy(max_rows=32) as model:
            model.limit_rows(10)
            futures = [model.infer(row(n)) for n in range(64)]
            model.release()
            for n, y in enumerate(await asyncio.gather(*futures)):
                assert np.array_equal(y, row(n))
            # 32, its half, a quarter; from then on no more than what fitted.
            assert model.seen[1:] == [32, 16] + [8] * 8
            assert model.stats().failed == 0

    run(main)


def test_what_is_left_of_a_batch_keeps_to_the_cap_that_its_first_half_taught(run):
    """It ran out of memory once more, each half of it."""

    async def main():
        async with busy(max_rows=32) as model:
            model.limit_rows(3)
            x = row(7, rows=5)
            futures = [model.infer(row(n)) for n in range(20)]
            futures += [model.infer(x), model.infer(row(8, rows=7))]
            model.release()
            results = await asyncio.gather(*futures)
            for n in range(20):
                assert np.array_equal(results[n], row(n))
            assert np.array_equal(results[20], x)
            assert np.array_equal(results[21], row(8, rows=7))
            assert model.seen[1:] == [32, 16, 8, 4] + [2] * 16

    run(main)


def test_scripted_memory_failures_teach_the_cap_too(run):
    async def main():
        async with busy(max_rows=16) as model:
            futures = [model.infer(row(n)) for n in range(16)]
            model.release(1)
            await model.begun(2)
            model.fail(2, memory=True)  # of 16, and of the first half
            model.release()
            for n, y in enumerate(await asyncio.gather(*futures)):
                assert np.array_equal(y, row(n))
            assert model.seen[1:] == [16, 8, 4, 4, 4, 4]

    run(main)


def test_halving_for_memory_goes_through_the_middle_of_a_request(run):
    async def main():
        async with busy(max_rows=32) as model:
            model.limit_rows(3)
            x = np.arange(24, dtype=np.float32).reshape(12, 2)
            futures = [model.infer(x), model.infer(row(5)), model.infer(x + 50)]
            model.release()
            first, middle, last = await asyncio.gather(*futures)
            assert np.array_equal(first, x)
            assert np.array_equal(middle, row(5))
            assert np.array_equal(last, x + 50)
            assert model.seen[1:] == halves_for_memory(25, 3)

    run(main)


def test_slices_of_a_request_follow_the_cap_that_they_teach(run):
    async def main():
        async with busy(max_rows=16) as model:
            model.limit_rows(8)
            future = model.infer(row(3, rows=50))
            model.release()
            assert np.array_equal(await future, row(3, rows=50))
            assert model.seen[1:] == [16, 8, 8, 8, 8, 8, 8, 2]

    run(main)


def test_one_row_that_does_not_fit_fails_with_out_of_memory(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(row(n)) for n in range(4)]
            model.release(1)
            await model.begun(2)
            model.fail(3, "no memory at all", memory=True)  # 4, 2, 1
            model.release()
            error, *rest = await outcomes(futures)
            assert isinstance(error, ml.OutOfMemory)
            assert "no memory at all" in str(error)
            for n, y in enumerate(rest, 1):
                assert np.array_equal(y, row(n))
            assert model.seen[1:] == [4, 2, 1, 1, 1, 1]

    run(main)


def test_cap_is_raised_again_carefully(run):
    """64 runs at the cap raise it by a quarter, until it reaches what didn't fit."""

    async def main():
        expected = [*[8] * 62, *[10] * 64, *[12] * 64, *[15] * 64, *[16] * 3]
        # A run must take a while for its cost to be noted.
        async with await echo(
            batching=ml.Batching(16), queue=ml.Queue(10_000), delay=50e-6
        ) as model:
            model.hold()
            first = model.infer("first")
            await model.begun(1)
            model.limit_rows(8)
            futures = [model.infer(row(0)) for _ in range(16)]
            model.release()
            await asyncio.gather(first, *futures)
            assert model.seen[1:] == [16, 8, 8]  # the last two were at the cap
            model.limit_rows(0)
            model.hold()
            first = model.infer("first")
            await model.begun(5)
            futures = [model.infer(row(0)) for _ in range(sum(expected))]
            model.release()
            await asyncio.gather(first, *futures)
            assert model.seen[5:] == expected

    run(main)


# --- for ever ---


def test_backend_that_fails_for_ever_answers_everybody_and_says_so(run):
    async def main():
        async with busy(max_rows=8) as model:
            futures = [model.infer(row(n)) for n in range(40)]
            model.release(1)
            await model.begun(2)
            model.fail(10**9, "the device fell off")
            model.release()
            for error in await outcomes(futures):
                assert type(error) is ml.BackendError
                assert "the device fell off" in str(error)
            health = model.health()
            assert not health.ok
            assert health.status == "ready"
            assert health.message == "the device fell off"
            assert health.failing == 5 * 15  # 8, 4, 2, 1, 1, …
            model.fail(0)
            assert np.array_equal(await model.infer(row(1)), row(1))
            health = model.health()
            assert health.ok
            assert health.failing == 0
            assert health.message == ""

    run(main)


def test_failures_of_single_requests_do_not_make_a_model_unhealthy(run):
    async def main():
        async with await echo() as model:
            model.poison(POISON)
            for n in range(20):
                with pytest.raises(ml.BackendError):
                    await model.infer(row(POISON))
                assert model.health().failing == 1
                assert model.health().ok
                await model.infer(row(n))
            for n in range(8):
                assert model.health().ok, n
                with pytest.raises(ml.BackendError):
                    await model.infer(row(POISON))
            assert not model.health().ok

    run(main)


def test_memory_that_fails_for_ever_answers_everybody(run):
    async def main():
        async with busy(max_rows=8) as model:
            futures = [model.infer(row(n, rows=2)) for n in range(20)]
            model.release(1)
            await model.begun(2)
            model.fail(10**9, "no memory", memory=True)
            model.release()
            for error in await outcomes(futures):
                assert isinstance(error, ml.OutOfMemory)
            model.fail(0)
            assert np.array_equal(await model.infer(row(1)), row(1))

    run(main)
