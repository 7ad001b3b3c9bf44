"""Cancelling: at once for whoever waits, never begun where it had not begun."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from pyasyncml.testing import echo

needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")


def test_cancelled_waiting_work_never_begins(run):
    async def main():
        async with await echo() as model:
            model.hold()
            first = model.infer(np.zeros(1))
            waiting = [model.infer(np.zeros(n)) for n in range(2, 12)]
            for future in waiting[::2]:
                assert future.cancel()
                assert future.cancelled()
            model.release()
            await asyncio.gather(first, *waiting[1::2])
        assert model.seen == [1, 3, 5, 7, 9, 11]
        assert model.stats().cancelled == 5

    run(main)


def test_cancelled_running_work_settles_at_once_and_its_result_is_dropped(run):
    async def main():
        async with await echo() as model:
            model.hold()
            running, neighbour = model.infer(1), model.infer(2)
            await model.begun(1)
            assert running.cancel("enough")
            assert running.cancelled()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not neighbour.done()
            model.release()
            assert await neighbour == 2
            assert running.cancelled()

    run(main)


def test_late_failure_of_cancelled_work_is_dropped_silently(run, asyncio_log):
    async def main():
        async with await echo() as model:
            model.hold()
            model.fail(1)
            running = model.infer(1)
            await model.begun(1)
            running.cancel()
            del running
            model.release()

    run(main)
    assert asyncio_log == []


def test_cancel_passes_its_message_on(run):
    async def main():
        async with await echo() as model:
            model.hold()
            future = model.infer(1)
            future.cancel("because")
            with pytest.raises(asyncio.CancelledError, match="because"):
                await future
            model.release()

    run(main)


def test_only_the_first_cancel_counts(run):
    async def main():
        async with await echo() as model:
            model.hold()
            future = model.infer(1)
            assert future.cancel()
            assert not future.cancel()
            model.release()
            done = model.infer(2)
            await done
            assert not done.cancel()
            assert done.result() == 2
        assert model.stats().cancelled == 1

    run(main)


def test_cancelled_task_cancels_what_it_waits_for(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            future = model.infer(1)

            async def wait():
                await future

            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert future.cancelled()
            model.release()
        assert model.runs == 1

    run(main)


def test_wait_for_that_gives_up_cancels_the_work(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            future = model.infer(1)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(future, 0.01)
            assert future.cancelled()
            model.release()
            assert await asyncio.wait_for(model.infer(2), 60) == 2
        assert model.runs == 2

    run(main)


@needs_3_11
def test_timeout_context_cancels_the_work(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await model.infer(1)
            model.release()
        assert model.runs == 1

    run(main)


@needs_3_11
def test_task_group_that_fails_cancels_its_siblings_work(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            await model.begun(1)

            async def wait(n):
                await model.infer(n)

            async def fail():
                await asyncio.sleep(0)
                raise ValueError("a sibling")

            # Not "except*": the oldest Python supported doesn't know it.
            with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821
                async with asyncio.TaskGroup() as group:
                    for n in range(5):
                        group.create_task(wait(n))
                    group.create_task(fail())
            assert [str(exc) for exc in caught.value.exceptions] == ["a sibling"]
            model.release()
        assert model.runs == 1
        assert model.stats().cancelled == 5

    run(main)


def test_gather_returns_cancellations_beside_results(run):
    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(n) for n in range(4)]
            gathered = asyncio.gather(*futures, return_exceptions=True)
            futures[2].cancel()
            model.release()
            outcomes = await gathered
            assert isinstance(outcomes.pop(2), asyncio.CancelledError)
            assert outcomes == [0, 1, 3]

    run(main)


def test_cancelled_gather_cancels_all_its_work(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            futures = [model.infer(n) for n in range(1, 5)]
            gathered = asyncio.gather(*futures)
            gathered.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gathered
            assert all(future.cancelled() for future in futures)
            model.release()
        assert model.runs == 1

    run(main)


def test_shielded_work_goes_on(run):
    async def main():
        async with await echo() as model:
            model.hold()
            future = model.infer(1)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(future), 0.01)
            assert not future.done()
            model.release()
            assert await future == 1

    run(main)


def test_wait_and_as_completed_take_the_future_as_it_is(run):
    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(n) for n in range(3)]
            done, pending = await asyncio.wait(futures, timeout=0.01)
            assert not done
            model.release(1)
            done, pending = await asyncio.wait(
                futures, return_when=asyncio.FIRST_COMPLETED
            )
            assert [future.result() for future in done] == [0]
            assert len(pending) == 2
            model.release()
            results = [await next_one for next_one in asyncio.as_completed(futures)]
            assert sorted(results) == [0, 1, 2]

    run(main)


def test_cancelling_in_a_callback_of_the_same_burst_comes_too_late(run):
    """Both results came with one wake-up: the second future is settled already."""

    async def main():
        async with await echo() as model:
            model.hold()
            first, second = model.infer(1), model.infer(2)
            first.add_done_callback(lambda _: outcomes.append(second.cancel()))
            outcomes = []
            model.release()
            while model._script.seen()[1] < 2:
                pass  # both runs have ended before the loop looks
            await asyncio.wait([first, second])
            assert second.cancelled() == outcomes[0]
            assert second.cancelled() or second.result() == 2

    run(main)


def test_cancelling_everything_in_a_callback_leaves_a_model_that_serves(run):
    async def main():
        async with await echo(instances=2) as model:
            futures = [model.infer(n) for n in range(2_000)]
            futures[0].add_done_callback(lambda _: [f.cancel() for f in futures])
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            for n, outcome in enumerate(outcomes):
                assert outcome == n or isinstance(outcome, asyncio.CancelledError)
            assert await model.infer(7) == 7

    run(main)


def test_future_settled_by_hand_gives_its_work_up(run):
    async def main():
        async with await echo() as model:
            model.hold()
            running, waiting, failing = (model.infer(n) for n in range(3))
            await model.begun(1)
            running.set_result("mine")
            waiting.set_result("too")
            failing.set_exception(ValueError("by hand"))
            model.release()
            assert [await running, await waiting] == ["mine", "too"]
            with pytest.raises(ValueError, match="by hand"):
                await failing
            with pytest.raises(asyncio.InvalidStateError):
                running.set_result(1)
        assert model.runs == 1

    run(main)


def test_cancelled_wait_for_a_gate_is_forgotten(run):
    async def main():
        async with await echo() as model:
            watch = model.begun(1)
            watch.cancel()
            assert await model.infer(1) == 1
            assert watch.cancelled()
            await model.begun(1)

    run(main)


def test_cancelling_and_running_at_one_moment_settle_once(run):
    """Workers claim while the loop cancels: each request either ran or never begins."""

    async def main():
        rng = np.random.default_rng(7)
        async with await echo(instances=2) as model:
            served = 0
            for _ in range(300):
                futures = [model.infer(n) for n in range(10)]
                for n in rng.permutation(10)[:5]:
                    futures[n].cancel()
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
                served += sum(type(outcome) is int for outcome in outcomes)
        stats = model.stats()
        assert served + stats.cancelled == stats.submitted == 3_000
        # A cancelled one may have been running.
        assert served <= stats.completed <= served + stats.cancelled
        assert model.runs == stats.completed

    run(main)
