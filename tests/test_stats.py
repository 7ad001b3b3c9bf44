"""`stats()` and `health()`: numbers that add up."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def test_stats_count_what_became_of_every_request(run):
    async def main():
        queue = ml.Queue(max_rows=8, when_full="reject")
        async with await echo(queue=queue) as model:
            model.hold()
            first = model.infer(np.zeros(100))
            await model.begun(1)
            cancelled = [model.infer(1.0) for _ in range(2)]
            expired = [model.infer(1.0, timeout=0.01) for _ in range(3)]
            served = [model.infer(np.zeros(10)) for _ in range(3)]
            rejected = model.infer(1.0)
            stats = model.stats()
            assert (stats.backend, stats.devices) == ("echo", ("cpu",))
            assert (stats.submitted, stats.rejected) == (9, 1)
            assert (stats.waiting, stats.running) == (8, 1)
            assert stats.waiting_bytes == 3 * 80
            for future in cancelled:
                future.cancel()
            await asyncio.wait(expired)
            model.fail(1)
            model.release()
            await asyncio.gather(
                first, *served, *expired, rejected, return_exceptions=True
            )
            stats = model.stats()
            assert stats.submitted == 9
            assert stats.completed + stats.failed == 4
            assert (stats.failed, stats.cancelled, stats.expired) == (1, 2, 3)
            assert (stats.waiting, stats.waiting_bytes, stats.running) == (0, 0, 0)

    run(main)


def test_request_that_expires_is_counted_once_whoever_notices(run):
    async def main():
        async with await echo() as model:
            for _ in range(20):
                model.hold()
                begun = model.begun(model.runs + 1)
                first = model.infer(0)
                await begun
                late = [model.infer(n, timeout=0.001) for n in range(20)]
                time.sleep(0.001)  # the worker and the loop notice at one moment
                model.release()
                await asyncio.gather(first, *late, return_exceptions=True)
        stats = model.stats()
        answered = stats.completed + stats.failed + stats.expired
        assert answered == stats.submitted

    run(main)


def test_request_whose_loop_was_closed_before_it_began_counts_as_cancelled(make_loop):
    async def submit():
        model = await echo()
        model.hold()
        for n in range(10):
            model.infer(n)
        await model.begun(1)
        return model

    async def close(model):
        await model.close()

    loop = make_loop()
    model = loop.run_until_complete(submit())
    loop.close()
    del loop
    gc.collect()
    model.release()
    loop = make_loop()
    loop.run_until_complete(close(model))
    loop.close()
    stats = model.stats()
    assert (stats.submitted, stats.completed, stats.cancelled) == (10, 1, 9)


def test_latencies_are_told_in_seconds(run):
    async def main():
        async with await echo(delay=0.02) as model:
            assert (model.stats().run_p50, model.stats().wait_p99) == (0.0, 0.0)
            await asyncio.gather(*(model.infer(n) for n in range(5)))
            stats = model.stats()
            assert 0.0175 <= stats.run_p50 <= stats.run_p99 < 2
            assert 0.0175 <= stats.wait_p50 <= stats.wait_p99 < 2
            assert len(stats.busy) == 1
            assert stats.busy[0] >= 5 * 0.02

    run(main)


def test_each_instance_tells_how_busy_it_was(run):
    async def main():
        async with await echo(instances=3) as model:
            model.hold()
            futures = [model.infer(n) for n in range(3)]
            await model.begun(3)
            model.release()
            await asyncio.gather(*futures)
            assert len(model.stats().busy) == 3
            assert all(seconds > 0 for seconds in model.stats().busy)

    run(main)


def test_health_tells_for_how_long_work_runs_and_waits(run):
    """Also when every worker hangs: what came since was in no list yet, and its wait
    was told as 0."""

    async def main():
        async with await echo(instances=2) as model:
            assert model.health() == ml.Health("ready", "", 2, 2, 0.0, 0.0, 0)
            assert model.health().ok
            model.hold()
            futures = [model.infer(n) for n in range(2)]
            await model.begun(2)
            futures.append(model.infer(2))
            time.sleep(0.01)  # an age to be measured
            health = model.health()
            assert 0.01 <= health.longest_run < 5
            assert 0.01 <= health.oldest_wait < 5
            assert health.ok
            model.release()
            await asyncio.gather(*futures)
            assert model.health().longest_run == 0.0

    run(main)


def test_health_of_a_model_that_loads_says_so(run):
    async def main():
        from pyasyncml import _core
        from pyasyncml.model import Model, make_model

        model = make_model(
            Model, "echo", _core.echo_backend, _core.EchoScript(), name="new"
        )
        assert model.health().status == "new"
        assert not model.health().ok
        with pytest.raises(ml.ModelClosed):
            assert model.signature
        await model._start()
        assert model.health().status == "ready"
        await model.close()

    run(main)


def test_what_is_told_is_a_value(run):
    async def main():
        async with await echo() as model:
            for told in (model.stats(), model.health(), model.signature):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    told.name = 1
                assert dataclasses.replace(told) == told

    run(main)
