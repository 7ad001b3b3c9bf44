"""Independent requests that share a run, and get what they'd have got alone."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from batches import busy, counted, ones, outcomes, releases

import pyasyncml as ml
from pyasyncml.testing import echo

LENGTH = {"length": {0: 1}}
PAD = ml.Pad(LENGTH)

# --- what shares a run ---


def test_what_waits_shares_runs_of_up_to_max_rows(run):
    async def main():
        async with busy(max_rows=4) as model:
            inputs = [counted(1, 3, first=n) for n in range(10)]
            futures = [model.infer(x) for x in inputs]
            model.release()
            for x, y in zip(inputs, await asyncio.gather(*futures), strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [4, 4, 2]
            stats = model.stats()
            assert (stats.runs, stats.rows, stats.requests) == (4, 11, 11)
            assert releases(model) == {"full": 2, "drained": 1}

    run(main)


def test_a_free_instance_waits_for_nobody(run):
    async def main():
        async with await echo(batching=ml.Batching(max_rows=4)) as model:
            for n in range(5):
                x = counted(1, 2, first=n)
                assert np.array_equal(await model.infer(x), x)
            assert model.seen == [1] * 5
            assert model.stats().releases["drained"] == 5

    run(main)


def test_rows_count_and_not_requests(run):
    async def main():
        async with busy(max_rows=8) as model:
            sizes = [3, 5, 1, 8, 2, 2, 2]
            inputs = [counted(n, 2, first=100 * n) for n in sizes]
            futures = [model.infer(x) for x in inputs]
            model.release()
            for x, y in zip(inputs, await asyncio.gather(*futures), strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [8, 1, 8, 6]

    run(main)


def test_one_that_does_not_fit_keeps_its_place(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(ones(n, 1)) for n in (3, 2, 1)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [3, 3]  # the last doesn't overtake the second

    run(main)


def test_requests_of_several_loops_share_a_run(make_loop):
    async def main():
        async with busy(max_rows=4) as model:
            here = model.infer(counted(1, 2))

            def elsewhere():
                async def other():
                    future = model.infer(counted(1, 2, first=5))
                    submitted.set()
                    return await future

                loop = make_loop()
                try:
                    return loop.run_until_complete(other())
                finally:
                    loop.close()

            submitted = threading.Event()
            there = asyncio.get_running_loop().run_in_executor(None, elsewhere)
            assert submitted.wait(30)
            model.release()
            assert np.array_equal(await here, counted(1, 2))
            assert np.array_equal(await there, counted(1, 2, first=5))
            assert model.seen[1:] == [2]

    loop = make_loop()
    try:
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ones(1, 2), ones(1, 3)),
        (ones(1, 2), ones(1, 2, 1)),
        (ones(1, 2), ones(1, 2, dtype=np.float64)),
        (ones(1, 2, dtype=np.int64), ones(1, 2, dtype=np.uint64)),
        (ones(1, 2), [ones(1, 2)]),
        ((ones(1, 2),), [ones(1, 2)]),
        ([ones(1), ones(1)], [ones(1)]),
        ({"a": ones(1)}, {"b": ones(1)}),
        ((ones(1), "a"), (ones(1), "b")),
        ((ones(1), b"a"), (ones(1), "a")),
        ((ones(1), None), (ones(1), "a")),
    ],
    ids=[
        *("sizes", "ranks", "dtypes", "signs", "structures", "kinds", "lengths"),
        *("keys", "texts", "bytes-and-text", "none"),
    ],
)
def test_requests_that_differ_do_not_share_a_run(run, one, other):
    async def main():
        async with busy() as model:
            futures = [model.infer(x) for x in (one, other, one, other)]
            model.release()
            results = await asyncio.gather(*futures)
            assert model.stats().runs == 3
            for x, y in zip((one, other, one, other), results, strict=True):
                assert type(x) is type(y)

    run(main)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        (np.float32(1), np.float32(2)),
        (np.array(1), np.array(1.0)),
    ],
    ids=["ints", "int-and-float", "bool-and-int", "zeros", "rank-0", "rank-0-dtypes"],
)
def test_scalars_must_agree_to_share_a_run(run, one, other):
    async def main():
        async with busy() as model:
            futures = [model.infer(ones(1, 2), s) for s in (one, other, one, other)]
            model.release()
            # The echo gives the scalar back, and that can't be anybody's row.
            for error in await outcomes(futures):
                assert isinstance(error, ml.BackendError)
                assert "outputs follow the batch axis" in str(error)
            assert model.seen[1:] == [2, 2]

    run(main)


def test_nan_agrees_with_itself(run):
    async def main():
        async with busy() as model:
            futures = [model.infer(ones(1, 2), float("nan")) for _ in range(3)]
            model.release()
            await outcomes(futures)
            assert model.seen[1:] == [3]

    run(main)


def test_requests_without_rows_share_nothing_and_are_served(run):
    async def main():
        async with busy() as model:
            futures = [model.infer(x) for x in ("a", "a", ["b", None], ones(0, 3))]
            model.release()
            *texts, empty = await asyncio.gather(*futures)
            assert texts == ["a", "a", ["b", None]]
            assert empty.shape == (0, 3)
            assert model.seen[1:] == [1, 1, 1, 0]
            assert releases(model) == {"alone": 4}

    run(main)


def test_each_group_leads_in_its_turn_with_its_first_request(run):
    async def main():
        async with busy(max_rows=8) as model:
            a, b = ones(1, 2), ones(2, 3)
            futures = [model.infer(x) for x in (a, b, a, b, "alone", a)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [3, 4, 1]

    run(main)


# --- inputs, outputs, structures ---


def test_several_inputs_and_outputs_of_any_dtype(run):
    dtypes = [np.float16, np.float64, np.int8, np.uint16, np.int64, np.bool_, "<c8"]

    async def main():
        async with busy() as model:
            requests = [
                [counted(1 + n % 3, 2, 2, first=n).astype(d) for d in dtypes]
                for n in range(6)
            ]
            futures = [model.infer(*inputs) for inputs in requests]
            model.release()
            for inputs, got in zip(
                requests, await asyncio.gather(*futures), strict=True
            ):
                assert len(got) == len(inputs)
                for x, y in zip(inputs, got, strict=True):
                    assert x.dtype == y.dtype
                    assert np.array_equal(x, y)
            assert model.seen[1:] == [12]

    run(main)


def test_nested_structures_are_taken_apart_and_put_together(run):
    def request(n, rows):
        return {
            "a": [counted(rows, first=n), (counted(rows, 2, first=n), "text")],
            "b": {"c": counted(rows, 1, 3, first=n), "d": None},
        }

    async def main():
        async with busy() as model:
            futures = [model.infer(request(n, 1 + n % 2)) for n in range(5)]
            model.release()
            for n, y in enumerate(await asyncio.gather(*futures)):
                x = request(n, 1 + n % 2)
                assert np.array_equal(y["a"][0], x["a"][0])
                assert np.array_equal(y["a"][1][0], x["a"][1][0])
                assert y["a"][1][1] == "text"
                assert np.array_equal(y["b"]["c"], x["b"]["c"])
                assert y["b"]["d"] is None
            assert model.stats().runs == 2

    run(main)


def test_inputs_that_are_not_contiguous_are_gathered_right(run):
    async def main():
        async with busy() as model:
            x = counted(6, 8)
            views = [x[::2, ::-1], x.T[:3, :].T[:3, :], x[1:4, :3], x[5::-2, 4:7]]
            futures = [model.infer(view) for view in views]
            model.release()
            for view, y in zip(views, await asyncio.gather(*futures), strict=True):
                assert np.array_equal(view, y)

    run(main)


def test_results_of_a_shared_run_are_the_callers_own(run):
    async def main():
        async with busy() as model:
            futures = [model.infer(counted(1, 4, first=n)) for n in range(3)]
            model.release()
            results = await asyncio.gather(*futures)
        for n, y in enumerate(results):
            assert y.flags.writeable
            y += 10
            assert np.array_equal(y, 10 + counted(1, 4, first=n))
            y[:] = -1

    run(main)


def test_large_part_of_a_run_is_a_view_and_a_small_one_pins_nothing(run):
    async def main():
        async with busy() as model:
            futures = [model.infer(counted(n, 100)) for n in (10, 10, 1)]
            model.release()
            one, other, small = await asyncio.gather(*futures)
            address = one.__array_interface__["data"][0]
            assert other.__array_interface__["data"][0] == address + one.nbytes
            whole = range(address, address + 21 * 400)
            assert small.__array_interface__["data"][0] not in whole
            del one, other
            assert np.array_equal(small, counted(1, 100))

    run(main)


def test_unequal_rows_are_an_error_of_the_call_that_names_the_input(run):
    async def main():
        async with await echo(batching=ml.Batching()) as model:
            with pytest.raises(ml.InputError, match="input 2 has 3 rows, input 0 has "):
                model.infer(ones(2, 1), ones(2), ones(3))
            with pytest.raises(ml.InputError, match="input 1 has 1 rows, input 0 has "):
                model.infer([ones(2), "x"], {"a": (ones(1),)})
            assert model.runs == 0
            assert model.stats().submitted == 0

    run(main)


# --- many rows, and none ---


@pytest.mark.parametrize("rows", [5, 8, 9, 30])
def test_request_of_more_than_max_rows_is_cut_and_joined(run, rows):
    async def main():
        async with busy(max_rows=4) as model:
            x, z = counted(rows, 3), counted(rows, dtype=np.int64)
            large = model.infer(x, [z])
            small = model.infer(x[:1], [z[:1]])
            model.release()
            y, (w,) = await large
            assert np.array_equal(x, y)
            assert np.array_equal(z, w)
            assert y.flags.writeable
            await small
            cut = [4] * (rows // 4) + [rows % 4] * (rows % 4 > 0)
            assert model.seen[1:] == [*cut, 1]
            assert model.stats().requests == 2 + len(cut)

    run(main)


def test_cut_request_that_fails_in_a_later_slice_fails_with_its_error(run):
    async def main():
        async with busy(max_rows=4) as model:
            model.poison(9)
            x = counted(16, 1)
            with_poison, without = model.infer(x), model.infer(x + 100)
            model.release()
            with pytest.raises(ml.BackendError, match="the input holds 9"):
                await with_poison
            assert np.array_equal(await without, x + 100)
            assert model.seen[1:] == [4, 4, 4, 4, 4, 4, 4]  # none after the failure

    run(main)


def test_cut_request_that_is_cancelled_stops_between_slices(run):
    async def main():
        async with busy(max_rows=2) as model:
            large = model.infer(counted(10, 1))
            model.release(2)
            await model.begun(3)
            large.cancel()
            model.release()
            with pytest.raises(asyncio.CancelledError):
                await large
            assert np.array_equal(await model.infer(ones(1, 1)), ones(1, 1))
            assert model.seen[1:] == [2, 2, 1]

    run(main)


def test_request_of_no_rows_takes_a_place_in_the_queue(run):
    """Any number of them was accepted, and none was told of."""

    async def main():
        queue = ml.Queue(max_rows=4, when_full="reject")
        async with busy(queue=queue) as model:
            x = np.zeros((0, 3), np.float32)
            futures = [model.infer(ones(2, 3)), model.infer(x), model.infer(x)]
            assert model.stats().waiting == 4
            with pytest.raises(ml.QueueFull, match="0 rows"):
                await model.infer(x)
            model.release()
            assert [len(y) for y in await asyncio.gather(*futures)] == [2, 0, 0]
            stats = model.stats()
            assert (stats.waiting, stats.rows, stats.requests) == (0, 3, 4)

    run(main)


def test_zero_rows_come_back_as_zero_rows(run):
    async def main():
        async with await echo(batching=ml.Batching(max_rows=4)) as model:
            x, y = await model.infer(ones(0, 3), {"a": ones(0, 2, dtype=np.int8)})
            assert x.shape == (0, 3)
            assert y["a"].shape == (0, 2)
            assert y["a"].dtype == np.int8

    run(main)


# --- cancelling, expiring ---


def test_cancelled_and_expired_rows_leave_before_dispatch(run):
    async def main():
        async with busy(max_rows=4) as model:
            futures = [model.infer(counted(1, 2, first=n)) for n in range(6)]
            late = model.infer(ones(1, 2), timeout=0.01)
            for n in (1, 4):
                futures[n].cancel()
            with pytest.raises(ml.DeadlineExceeded):
                await late
            model.release()
            await asyncio.wait(futures)
            assert model.seen[1:] == [4]
            for n in (0, 2, 3, 5):
                assert np.array_equal(futures[n].result(), counted(1, 2, first=n))
            stats = model.stats()
            assert (stats.cancelled, stats.expired, stats.completed) == (2, 1, 5)

    run(main)


def test_cancel_in_flight_disturbs_no_neighbour(run):
    async def main():
        async with busy(max_rows=8) as model:

            async def ask(n):
                return await model.infer(counted(2, 3, first=n))

            tasks = [asyncio.ensure_future(ask(n)) for n in range(4)]
            await asyncio.sleep(0)
            model.release(1)
            await model.begun(2)
            tasks[0].cancel()
            tasks[2].cancel()
            results = asyncio.gather(*tasks, return_exceptions=True)
            model.release()
            for n, result in enumerate(await results):
                if n % 2:
                    assert np.array_equal(result, counted(2, 3, first=n))
                else:
                    assert isinstance(result, asyncio.CancelledError)
            assert model.seen[1:] == [8]
            assert all(task.cancelled() for task in tasks[::2])

    run(main)


def test_deadline_in_flight_disturbs_no_neighbour(run):
    async def main():
        async with busy(max_rows=8) as model:
            # Far enough ahead for the run to begin, and the run lasts until it passed.
            late = model.infer(ones(1, 2), timeout=0.3)
            other = model.infer(counted(1, 2))
            model.release(1)
            await model.begun(2)
            with pytest.raises(ml.DeadlineExceeded):
                await late
            assert not other.done()
            model.release()
            assert np.array_equal(await other, counted(1, 2))
            assert model.seen[1:] == [2]

    run(main)


# --- batch axes ---


def test_batch_axis_may_be_another_one(run):
    async def main():
        async with busy(axes={1: 1}, output_axes={1: 1}) as model:
            requests = [
                (counted(n, 3, first=n), counted(2, n, 4, first=-n)) for n in (1, 2, 3)
            ]
            futures = [model.infer(*request) for request in requests]
            model.release()
            for (x, state), (y, out) in zip(
                requests, await asyncio.gather(*futures), strict=True
            ):
                assert np.array_equal(x, y)
                assert np.array_equal(state, out)
            assert model.seen[1:] == [6]

    run(main)


def test_request_cut_along_another_axis_is_joined_along_it(run):
    async def main():
        async with busy(max_rows=3, axes={1: 1}, output_axes={1: 1}) as model:
            x, state = counted(8, 3), counted(2, 8, 4)
            future = model.infer(x, state)
            model.release()
            y, out = await future
            assert np.array_equal(x, y)
            assert np.array_equal(state, out)
            assert model.seen[1:] == [3, 3, 2]

    run(main)


def test_batch_axis_that_an_input_does_not_have_is_an_input_error(run):
    async def main():
        async with await echo(batching=ml.Batching(axes={0: 1})) as model:
            with pytest.raises(ml.InputError, match="axis 1 the batch axis of input 0"):
                model.infer(ones(3))

    run(main)


# --- several instances ---


def test_several_instances_answer_everybody_once(run):
    async def main():
        async with await echo(instances=3, batching=ml.Batching(max_rows=8)) as model:
            inputs = [counted(1 + n % 4, 2, first=n) for n in range(500)]
            results = await asyncio.gather(*map(model.infer, inputs))
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert sum(model.seen) == sum(len(x) for x in inputs)
            assert max(model.seen) <= 8

    run(main)


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_rows": 0}, "Batching: max_rows: expected an int, 1 or more, got 0"),
        ({"max_rows": True}, "Batching: max_rows: expected an int"),
        ({"max_rows": 2.0}, "Batching: max_rows: expected an int"),
        ({"max_delay": -1}, "Batching: max_delay: expected seconds, 0 to 3600, got -1"),
        ({"max_delay": 3601}, "Batching: max_delay: expected seconds"),
        ({"max_delay": float("nan")}, "Batching: max_delay: expected seconds"),
        ({"max_delay": "1"}, "Batching: max_delay: expected seconds"),
        ({"pad": LENGTH}, "Batching: pad: expected a Pad, got dict"),
        ({"buckets": {"length": (4,)}}, "'length' is no axis of pad="),
        (
            {"pad": ml.Pad(LENGTH), "buckets": {"width": (4,)}},
            "'width' is no axis of pad=",
        ),
        (
            {"pad": ml.Pad(LENGTH), "buckets": {"length": ()}},
            "expected ascending lengths, got ()",
        ),
        (
            {"pad": ml.Pad(LENGTH), "buckets": {"length": (8, 4)}},
            "expected ascending lengths",
        ),
        (
            {"pad": ml.Pad(LENGTH), "buckets": {"length": (4, 4)}},
            "expected ascending lengths",
        ),
        (
            {"pad": ml.Pad(LENGTH), "buckets": {"length": (0, 4)}},
            "expected an int, 1 or more",
        ),
        ({"axes": {"x": -1}}, "Batching: axes['x']: expected an int, 0 or more"),
        ({"axes": {64: 1}}, "Batching: axes: expected a position below 64, got 64"),
        ({"axes": {True: 1}}, "Batching: axes: expected a name or a position"),
        ({"output_axes": {None: 1}}, "Batching: output_axes: expected a name or a pos"),
    ],
    ids=str,
)
def test_batching_says_what_it_expected(arguments, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        ml.Batching(**arguments)
    assert message in str(caught.value)


def test_load_says_what_batching_it_expected():
    with pytest.raises(TypeError, match="^batching: expected a Batching, got int"):
        ml.load("nothing.pt", batching=32)
