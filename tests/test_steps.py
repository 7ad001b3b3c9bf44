"""Steps over arrays: what training runs on, driven on the echo backend."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

from pyasyncml import (
    BackendError,
    InputError,
    ModelClosed,
    Queue,
    QueueFull,
    _core,
)
from pyasyncml.testing import echo


def steps_over(model, *arrays, order=None, table=None, batch=1, epochs=1, **options):
    """Steps whose first value is the first element of what a batch of one holds."""
    rows = len(arrays[0])
    per_epoch = -(-rows // batch)
    columns = 0 if table is None else table.shape[1]
    return _core.Steps(
        model,
        arrays,
        order,
        table,
        columns,
        options.get("values", 1),
        rows,
        batch,
        epochs * per_epoch,
        options.get("stop_when_not_finite", False),
    )


def numbers(steps):
    (losses,) = steps.values(0, steps.done)
    return losses


def test_rows_come_in_the_order_given_epoch_by_epoch():
    async def main():
        async with await echo() as model:
            order = np.array([2, 0, 1, 1, 2, 0], dtype=np.int64)
            steps = steps_over(model, np.array([10.0, 11, 12]), order=order, epochs=2)
            assert await steps.start() == 6
            assert numbers(steps) == [12, 10, 11, 11, 12, 10]

    asyncio.run(main())


def test_a_batch_holds_rows_of_every_array_and_the_last_one_what_is_left():
    async def main():
        async with await echo() as model:
            x = np.arange(10, dtype=np.int32).reshape(5, 2)
            y = np.arange(5, dtype=np.float64)
            table = np.array([[0.5], [0.25], [0.125]])
            steps = steps_over(model, x, y, table=table, batch=2)
            assert await steps.start() == 3
            assert numbers(steps) == [0.5, 0.25, 0.125]
            stats = model.stats()
            assert (stats.submitted, stats.completed, stats.waiting) == (3, 3, 0)

    asyncio.run(main())


def test_a_stop_ends_after_a_whole_step_and_a_start_goes_on_from_there():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(6.0))
            run = steps.start()
            model.release(2)
            await model.begun(3)
            steps.stop()
            model.release(1)
            assert await run == 3
            model.release()
            assert await steps.start() == 6
            assert numbers(steps) == [0, 1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_run_ends_at_the_limit_and_goes_on_once_it_is_raised():
    async def main():
        async with await echo() as model:
            table = np.zeros((6, 1))
            steps = steps_over(model, np.arange(6.0), table=table)
            table[:2] = 1
            steps.limit(2)
            assert await steps.start() == 2
            table[2:] = 2
            steps.limit(6)
            assert await steps.start() == 6
            assert numbers(steps) == [1, 1, 2, 2, 2, 2]
            with pytest.raises(ValueError, match="0 to 6"):
                steps.limit(7)

    asyncio.run(main())


def test_other_requests_get_in_between_two_steps():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(3.0))
            run = steps.start()
            await model.begun(1)
            other = model.infer(np.zeros(1))
            model.release(2)
            await other
            assert steps.done == 1
            model.release()
            assert await run == 3

    asyncio.run(main())


def test_a_cancelled_run_ends_after_the_step_under_way():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(3.0))
            run = steps.start()
            await model.begun(1)
            run.cancel()
            with pytest.raises(RuntimeError, match="run already"):
                steps.start()
            model.release()
            await model.infer(np.zeros(1))
            assert steps.done == 1

    asyncio.run(main())


def test_a_failed_step_fails_the_run_and_leaves_those_before_it():
    async def main():
        async with await echo() as model:
            model.poison(2.0)
            steps = steps_over(model, np.arange(5.0))
            with pytest.raises(BackendError):
                await steps.start()
            assert numbers(steps) == [0, 1]
            model.poison(None)
            assert await steps.start() == 5

    asyncio.run(main())


def test_a_step_without_a_number_is_an_error_that_says_so():
    async def main():
        async with await echo() as model:
            with pytest.raises(BackendError, match="several elements"):
                await steps_over(model, np.zeros((4, 3))).start()
            with pytest.raises(BackendError, match="1 values where 2"):
                await steps_over(model, np.zeros(4), values=2).start()

    asyncio.run(main())


def test_a_run_stops_after_the_first_value_that_is_not_finite_if_asked():
    async def main():
        async with await echo() as model:
            x = np.array([1.0, np.nan, 3.0])
            steps = steps_over(model, x, stop_when_not_finite=True)
            assert await steps.start() == 2
            assert await steps_over(model, x).start() == 3

    asyncio.run(main())


def test_a_watch_is_answered_once_there_is_news_and_misses_merge():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(5.0))
            run = steps.start()
            watch = steps.watch(0, 0.0)
            with pytest.raises(BackendError, match="watching"):
                await steps.watch(0, 0.0)
            assert not watch.done()
            model.release(1)
            assert await watch == 1
            gone = steps.watch(1, 0.0)
            gone.cancel()
            model.release()
            assert await run == 5
            assert await steps.watch(1, 0.0) == 5

    asyncio.run(main())


def test_closing_the_model_ends_the_run():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(5.0))
            run = steps.start()
            await model.begun(1)
            closing = model.close()
            model.release()
            with pytest.raises(ModelClosed, match="before all steps ran"):
                await run
            await closing
            assert steps.done == 1
            with pytest.raises(ModelClosed):
                await steps.start()

    asyncio.run(main())


def test_a_stop_may_come_later_and_the_first_of_several_counts():
    async def main():
        async with await echo() as model:
            model.hold()
            steps = steps_over(model, np.arange(6.0))
            run = steps.start()
            steps.stop(2)
            steps.stop(4)
            model.release()
            assert await run == 2
            steps.stop(1)
            assert await steps.start() == 6  # stops are of the run

    asyncio.run(main())


def test_a_full_queue_between_two_steps_is_called_what_it_is():
    async def main():
        async with await echo(queue=Queue(max_rows=1, when_full="reject")) as model:
            model.hold()
            run = steps_over(model, np.arange(3.0)).start()
            await model.begun(1)
            other = model.infer(np.zeros(1))
            model.release()
            with pytest.raises(QueueFull, match="full before all steps ran"):
                await run
            await other

    asyncio.run(main())


def test_a_run_whose_loop_is_gone_ends():
    async def start(model, steps):
        steps.start()
        steps.watch(5, 0.0)
        await model.begun(1)

    async def finish(model):
        model.release()
        await model.infer(np.zeros(1))
        await model.close()

    async def opened():
        return await echo()

    model = asyncio.run(opened())
    model.hold()
    steps = steps_over(model, np.arange(5.0))
    asyncio.run(start(model, steps))
    gc.collect()
    asyncio.run(finish(model))
    assert steps.done == 1


def test_steps_whose_loop_died_can_be_run_on_another():
    async def start(model, steps):
        steps.start()
        await model.begun(1)

    async def go_on(model, steps):
        with pytest.raises(RuntimeError, match="being run already"):
            steps.start()
        model.release()
        await model.infer(np.zeros(1))  # behind the step that was given up
        assert await steps.start() == 5
        await model.close()

    async def opened():
        return await echo()

    model = asyncio.run(opened())
    model.hold()
    steps = steps_over(model, np.arange(5.0))
    asyncio.run(start(model, steps))
    gc.collect()
    asyncio.run(go_on(model, steps))
    assert numbers(steps) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "order", "error"),
    [
        ((np.zeros((4, 2))[:, ::-1],), None, InputError),
        ((np.float64(1),), None, InputError),
        ((np.zeros(4), np.zeros(3)), None, InputError),
        ((np.zeros(4),), np.array([0, 1, 2, 4]), IndexError),
        ((np.zeros(4),), np.array([0, 1, 2, -1]), IndexError),
        ((np.zeros(4),), np.array([0, 1, 2]), ValueError),
        ((np.zeros(4),), np.zeros(4), ValueError),
    ],
    ids=["strides", "scalar", "short", "beyond", "negative", "few", "floats"],
)
def test_arrays_and_orders_that_do_not_fit_are_refused(arrays, order, error):
    async def main():
        async with await echo() as model:
            with pytest.raises(error):
                _core.Steps(model, arrays, order, None, 0, 1, 4, 1, 4, False)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("columns", "values", "loss"), [(-2, 1, 0), (0, 1, 1), (0, 0, 0)]
)
def test_counts_that_cannot_be_are_refused(columns, values, loss):
    async def main():
        async with await echo() as model:
            with pytest.raises(ValueError, match="columns"):
                _core.Steps(
                    model,
                    (np.zeros(4),),
                    None,
                    None,
                    columns,
                    values,
                    4,
                    1,
                    4,
                    False,
                    loss,
                )

    asyncio.run(main())
