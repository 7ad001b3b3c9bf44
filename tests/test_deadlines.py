"""`timeout=`: a deadline that covers the queue, kept while every worker is busy."""

from __future__ import annotations

import asyncio
import time

import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def spin_until(condition):
    """Keeps the loop's thread, which takes no part in what is waited for."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until


def test_waiting_work_expires_on_time_while_every_worker_is_busy(run):
    async def main():
        async with await echo(instances=2) as model:
            model.hold()
            busy = [model.infer(n) for n in range(2)]
            await model.begun(2)
            begun = time.monotonic()
            with pytest.raises(ml.DeadlineExceeded, match=r"timeout=0\.05 passed"):
                await model.infer(3, timeout=0.05)
            assert 0.05 <= time.monotonic() - begun < 30
            assert not any(future.done() for future in busy)
            model.release()
            assert await asyncio.gather(*busy) == [0, 1]

    run(main)


def test_expired_work_is_never_run(run):
    async def main():
        async with await echo() as model:
            model.hold()
            first = model.infer(0)
            await model.begun(1)
            late = [model.infer(n, timeout=0.01) for n in range(20)]
            outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ml.DeadlineExceeded}
            model.release()
            await first
        assert model.runs == 1
        assert model.stats().expired == 20

    run(main)


def test_worker_does_not_begin_what_expired_while_the_loop_was_blocked(run):
    async def main():
        async with await echo() as model:
            model.hold()
            first = model.infer(0)
            await model.begun(1)
            late = model.infer(1, timeout=0.01)
            last = model.infer(2)
            time.sleep(0.02)  # the loop sees no timer meanwhile
            model.release()
            spin_until(lambda: model._script.seen()[1] == 2)
            with pytest.raises(ml.DeadlineExceeded):
                await late
            assert [await first, await last] == [0, 2]
            assert model.runs == 2

    run(main)


def test_result_that_was_there_in_time_is_not_lost_to_a_loop_that_was_blocked(run):
    async def main():
        async with await echo() as model:
            future = model.infer(1, timeout=0.2)
            spin_until(lambda: model._script.seen()[1] == 1)
            time.sleep(0.25)  # past the deadline, with the result in the mailbox
            assert await future == 1
            assert model.stats().expired == 0

    run(main)


def test_running_work_expires_on_time_and_its_late_result_is_dropped(run):
    async def main():
        async with await echo() as model:
            model.hold()
            future = model.infer(1, timeout=0.2)
            await model.begun(1)
            with pytest.raises(ml.DeadlineExceeded):
                await future
            after = model.infer(2)
            model.release()
            assert await after == 2
            assert isinstance(future.exception(), ml.DeadlineExceeded)

    run(main)


def test_deadlines_pass_in_their_order_whatever_that_of_the_calls(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            order = []
            futures = []
            for n in (7, 2, 9, 4, 1, 8, 3, 6, 5):
                futures.append(model.infer(n, timeout=0.02 + n * 0.02))
                futures[-1].add_done_callback(lambda _, n=n: order.append(n))
            await asyncio.wait(futures)
            for future in futures:
                assert isinstance(future.exception(), ml.DeadlineExceeded)
            model.release()
        assert order == sorted(order)

    run(main)


def test_thousand_deadlines_at_one_moment_all_pass(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            await model.begun(1)
            futures = [model.infer(n, timeout=0.01) for n in range(1_000)]
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ml.DeadlineExceeded}
            model.release()
        assert model.runs == 1

    run(main)


def test_timeout_of_zero_has_passed_at_the_call(run):
    async def main():
        async with await echo() as model:
            future = model.infer(1, timeout=0)
            assert future.done()
            with pytest.raises(ml.DeadlineExceeded, match="timeout=0"):
                await future
            assert model.runs == 0

    run(main)


def test_deadline_exceeded_is_every_kind_of_timeout_error(run):
    async def main():
        async with await echo() as model:
            future = model.infer(1, timeout=0)
            for kind in (TimeoutError, asyncio.TimeoutError, ml.Error):
                with pytest.raises(kind):
                    await future

    run(main)


def test_work_done_in_time_is_not_disturbed_and_nothing_waits_for_its_deadline(run):
    async def main():
        async with await echo() as model:
            for timeout in (60, 3600, 1e8, 1e12, 1e308, float("inf"), None):
                assert await model.infer(1, timeout=timeout) == 1
            assert model.stats().expired == 0

    begun = time.monotonic()
    run(main)
    assert time.monotonic() - begun < 30


def test_shorter_timeout_after_a_longer_one_is_kept(run):
    async def main():
        async with await echo() as model:
            model.hold()
            first = model.infer(0, timeout=3600)
            with pytest.raises(ml.DeadlineExceeded):
                await model.infer(1, timeout=0.01)
            model.release()
            assert await first == 0

    run(main)


def test_cancelled_and_finished_work_leaves_the_other_deadlines_in_order(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            await model.begun(1)
            futures = [model.infer(n, timeout=0.02 + n % 7 * 0.003) for n in range(200)]
            for future in futures[::3]:
                assert future.cancel()
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            for n, outcome in enumerate(outcomes):
                kind = ml.DeadlineExceeded if n % 3 else asyncio.CancelledError
                assert type(outcome) is kind
            model.release()
        stats = model.stats()
        assert (stats.cancelled, stats.expired) == (67, 133)
        assert model.runs == 1

    run(main)


def test_callback_of_an_expired_request_may_submit_and_set_deadlines(run):
    async def main():
        done = asyncio.get_running_loop().create_future()

        def again(future):
            assert isinstance(future.exception(), ml.DeadlineExceeded)
            if model.stats().expired == 20:
                done.set_result(None)
            else:
                model.infer(1, timeout=0.001).add_done_callback(again)

        async with await echo() as model:
            model.hold()
            model.infer(0)
            model.infer(1, timeout=0.001).add_done_callback(again)
            await done
            model.release()

    run(main)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_timeout_below_zero_and_nan_are_value_errors_at_the_call(run, timeout):
    async def main():
        async with await echo() as model:
            with pytest.raises(ValueError, match="^timeout: expected seconds, 0 or"):
                model.infer(1, timeout=timeout)
            assert model.stats().submitted == 0

    run(main)


@pytest.mark.parametrize("timeout", ["1", [1], 1j, object()])
def test_timeout_that_is_no_number_is_a_type_error_at_the_call(run, timeout):
    async def main():
        async with await echo() as model:
            with pytest.raises(TypeError, match="^timeout: expected seconds or None"):
                model.infer(1, timeout=timeout)
            assert model.stats().submitted == 0

    run(main)
