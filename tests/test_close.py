"""Closing: what was accepted is served, or refused where that is asked for."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


def test_close_serves_what_was_accepted(run):
    async def main():
        model = await echo()
        model.hold()
        futures = [model.infer(n) for n in range(50)]
        closing = model.close()
        assert not closing.done()
        assert model.health().status == "closing"
        model.release()
        await closing
        assert [future.result() for future in futures] == list(range(50))
        assert model.health().status == "closed"

    run(main)


def test_close_without_draining_fails_what_waits_and_serves_what_runs(run):
    async def main():
        model = await echo(name="shop")
        model.hold()
        running = model.infer(0)
        await model.begun(1)
        waiting = [model.infer(n) for n in range(1, 20)]
        closing = model.close(drain=False)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ml.ModelClosed}
        assert "closed before the request ran" in str(outcomes[0])
        assert not running.done()
        assert not closing.done()
        model.release()
        assert await running == 0
        await closing
        assert model.runs == 1

    run(main)


def test_use_after_close_raises_at_the_call(run):
    async def main():
        async with await echo(name="shop") as model:
            model.hold()
            running = model.infer(0)
            closing = model.close()
            with pytest.raises(ml.ModelClosed, match="model 'shop' is closed"):
                model.infer(1)  # while it drains
            model.release()
            await running
            await closing
        with pytest.raises(ml.ModelClosed, match="model 'shop' is closed"):
            model.infer(1)
        with pytest.raises(ml.ModelClosed):
            model.infer(1, timeout=5, priority=3)
        with pytest.raises(ml.ModelClosed):
            model.run_direct(1)

    run(main)


def test_closed_model_still_tells_what_it_was(run):
    async def main():
        async with await echo() as model:
            await model.infer(1)
        assert model.stats().completed == 1
        assert model.health() == ml.Health("closed", "", 1, 0, 0.0, 0.0, 0)
        assert not model.health().ok
        assert model.signature.variadic
        assert "closed" in repr(model)

    run(main)


def test_close_may_be_called_again_and_again(run):
    async def main():
        model = await echo()
        model.hold()
        future = model.infer(1)
        closings = [model.close() for _ in range(5)]
        model.release()
        assert await asyncio.gather(*closings) == [None] * 5
        assert await future == 1
        await model.close()
        await model.close(drain=False)
        async with model:  # which closes it once more
            pass

    run(main)


def test_second_close_may_drop_what_the_first_would_have_served(run):
    async def main():
        model = await echo()
        model.hold()
        running, waiting = model.infer(1), model.infer(2)
        await model.begun(1)
        first = model.close()
        second = model.close(drain=False)
        with pytest.raises(ml.ModelClosed):
            await waiting
        model.release()
        assert await running == 1
        await asyncio.gather(first, second)

    run(main)


def test_close_that_nobody_waits_for_any_more_goes_on(run):
    async def main():
        model = await echo()
        model.hold()
        future = model.infer(1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.close(), 0.01)
        model.release()
        assert await future == 1
        await model.close()
        assert model.health().instances_alive == 0

    run(main)


def test_async_with_drains_when_left_normally(run):
    async def main():
        async with await echo() as model:
            futures = [model.infer(n) for n in range(100)]
        assert all(future.done() for future in futures)
        assert [future.result() for future in futures] == list(range(100))

    run(main)


def test_async_with_does_not_drain_when_left_on_an_exception(run):
    async def main():
        with pytest.raises(ValueError, match="enough"):
            async with ml.load(lambda event: event.wait(), name="wait") as model:
                event = threading.Event()
                running, waiting = model.infer(event), model.infer(event)
                while not model.stats().running:
                    await asyncio.sleep(0)
                asyncio.get_running_loop().call_later(0.01, event.set)
                raise ValueError("enough")
        assert await running is True
        with pytest.raises(ml.ModelClosed):
            await waiting

    run(main)


def test_failing_body_does_not_wait_at_the_gate_of_its_own_test(run):
    async def main():
        with pytest.raises(ValueError, match="enough"):
            async with await echo() as model:
                model.hold()
                future = model.infer(1)
                await model.begun(1)
                raise ValueError("enough")
        assert await future == 1

    run(main)


def test_two_loops_in_two_threads_may_close_one_model_at_once(run):
    async def main():
        model = await echo(instances=2)
        for n in range(20):
            model.infer(n)
        barrier = threading.Barrier(3)
        outcomes = []

        async def close():
            barrier.wait()
            outcomes.append(await model.close())

        others = [
            threading.Thread(target=asyncio.run, args=(close(),)) for _ in range(2)
        ]
        for other in others:
            other.start()
        await close()
        for other in others:
            other.join()
        assert outcomes == [None] * 3
        assert model.stats().completed == 20

    for _ in range(10):
        run(main)


def test_submitting_and_closing_from_two_threads_answers_every_request(run):
    async def main():
        model = await echo()
        counts = {"served": 0, "refused": 0, "closed": 0}
        begun = threading.Event()

        async def submit():
            futures = []
            for n in range(20_000):
                if n == 100:
                    begun.set()
                try:
                    futures.append(model.infer(n))
                except ml.ModelClosed:
                    counts["refused"] += 1
            for outcome in await asyncio.gather(*futures, return_exceptions=True):
                if isinstance(outcome, ml.ModelClosed):
                    counts["closed"] += 1
                else:
                    assert isinstance(outcome, int)
                    counts["served"] += 1

        other = threading.Thread(target=asyncio.run, args=(submit(),))
        other.start()
        await asyncio.to_thread(begun.wait)
        await model.close(drain=False)
        await asyncio.to_thread(other.join)
        assert sum(counts.values()) == 20_000
        assert counts["served"] == model.runs == model.stats().completed

    run(main)


def test_hundred_models_open_and_close_together(run):
    async def main():
        models = await asyncio.gather(*(echo(name=str(n)) for n in range(100)))
        outcomes = await asyncio.gather(*(model.infer(1) for model in models))
        assert outcomes == [1] * 100
        await asyncio.gather(*(model.close() for model in models))
        assert not any(model.health().instances_alive for model in models)

    run(main)


def test_closed_model_is_freed(run):
    async def main():
        async with await echo() as model:
            future = model.infer(1)
            await future
        return weakref.ref(model), future

    gone, future = run(main)
    gc.collect()
    assert gone() is None
    assert future.result() == 1


# --- not closed ---


def test_model_collected_unclosed_warns_and_its_workers_end(run):
    async def main():
        model = await echo(name="forgotten", instances=2)
        assert await model.infer(1) == 1

    with pytest.warns(ResourceWarning, match="unclosed model 'forgotten'"):
        run(main)
        gc.collect()


def test_unclosed_model_in_a_cycle_is_collected_too(run):
    async def main():
        model = await echo()
        model.itself = [model]

    with pytest.warns(ResourceWarning, match="unclosed model 'echo'"):
        run(main)
        gc.collect()


def test_model_nobody_holds_serves_what_it_accepted_before_it_is_collected(run):
    async def main():
        model = await echo()
        model.hold()
        futures = [model.infer(n) for n in range(5)]
        script = model._script
        del model
        gc.collect()
        script.release(None)
        with pytest.warns(ResourceWarning, match="unclosed model"):
            assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4]
            gc.collect()

    run(main)


def test_model_whose_load_was_cancelled_leaves_nothing(run):
    async def main():
        begun, go_on = threading.Event(), threading.Event()

        def slow(x):
            begun.set()
            go_on.wait()

        async def load():
            await ml.load(slow, inputs=1, instances=2)

        task = asyncio.create_task(load())
        while not begun.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    run(main)


def test_subclass_that_never_called_init_says_so(run):
    class Half(ml.Model):
        def __init__(self):
            pass

    async def main():
        model = Half()
        for use in (model.infer, model.close, model._stats, model._health):
            with pytest.raises(RuntimeError, match="not initialized"):
                use()

    run(main)
