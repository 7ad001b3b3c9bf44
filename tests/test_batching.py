"""Independent requests that share a run, and get what they'd have got alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


@contextlib.asynccontextmanager
async def busy(*, queue=None, **batching):
    """A batching echo model that is inside a run of its own, held: what is submitted
    waits until `model.release()`. That run shares with nobody and is `seen[0]`."""
    async with await echo(batching=ml.Batching(**batching), queue=queue) as model:
        model.hold()
        first = model.infer(["first"])  # no top-level text: it may be padded
        await model.begun(1)
        yield model
        model.release()
        await first


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def counted(*shape, first=0.0, dtype=np.float32):
    """An array whose elements count up from `first`."""
    return (first + np.arange(np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


async def outcomes(futures):
    return await asyncio.gather(*futures, return_exceptions=True)


def releases(model):
    """Why runs began, less the first of `busy`."""
    found = dict(model.stats().releases)
    found["alone"] -= 1
    return {reason: count for reason, count in found.items() if count}


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
            if batching is None:
                assert model.seen.index(2) == 71  # the first of 65 and more: 8 n + 7
                assert model.seen.index(3) == 79
            else:
                assert model.seen.index(2) == 71
                assert model.seen[-1] == 3 or model.seen.index(3) == 79
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

FOR_EVER = 3600.0


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


# --- padding ---

LENGTH = {"length": {0: 1}}
PAD = ml.Pad(LENGTH, outputs=LENGTH)
MASKED = ml.Pad(LENGTH, outputs=LENGTH, mask=1)


def of_length(*lengths, first=1.0, rows=1):
    return [counted(rows, n, first=first) for n in lengths]


async def infer_all(model, inputs):
    futures = [model.infer(x) for x in inputs]
    model.release()
    return await asyncio.gather(*futures)


def test_different_lengths_share_a_run_and_come_back_as_they_were(run):
    async def main():
        async with busy(pad=PAD) as model:
            inputs = of_length(7, 8, 6, 8, 7)
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
                assert y.flags.writeable
            assert model.seen[1:] == [5]
            assert model.stats().padding_waste == pytest.approx(1 - 36 / 40)

    run(main)


def test_outputs_that_are_not_declared_stay_padded(run):
    async def main():
        async with busy(pad=ml.Pad(LENGTH, fill={0: -1})) as model:
            short, long = await infer_all(model, of_length(3, 4))
            assert short.tolist() == [[1, 2, 3, -1]]
            assert long.tolist() == [[1, 2, 3, 4]]

    run(main)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        *((np.float32, float("-inf")), (np.float16, 0.5), (np.float64, 1e300)),
        *((np.int64, -100), (np.uint8, 255), (np.bool_, 1)),
    ],
)
def test_padding_is_filled_with_what_was_asked(run, dtype, fill):
    async def main():
        async with busy(pad=ml.Pad(LENGTH, fill={0: fill})) as model:
            inputs = [ones(1, n, dtype=dtype) for n in (3, 4)]
            short, long = await infer_all(model, inputs)
            assert short[0, 3] == np.array(fill).astype(dtype)
            assert (long == 1).all()

    run(main)


def test_fill_that_the_dtype_cannot_hold_is_an_input_error(run):
    async def main():
        pad = ml.Pad(LENGTH, fill={0: -1})
        async with await echo(batching=ml.Batching(pad=pad)) as model:
            with pytest.raises(ml.InputError, match="uint8, which can't hold -1"):
                model.infer(ones(1, 2, dtype=np.uint8))

    run(main)


def test_lengths_are_padded_to_buckets(run):
    async def main():
        pad = ml.Pad(LENGTH)
        async with busy(pad=pad, buckets={"length": (4, 16)}) as model:
            inputs = of_length(3, 4, 10, 1, 16)
            results = await infer_all(model, inputs)
            assert [y.shape[1] for y in results] == [4, 4, 16, 4, 16]
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y[:, : x.shape[1]])
                assert not y[:, x.shape[1] :].any()

    run(main)


def test_requests_of_one_bucket_share_a_run_whatever_their_lengths(run):
    """They're padded to the bucket in any case."""

    async def main():
        async with busy(pad=PAD, buckets={"length": (16, 64)}) as model:
            inputs = of_length(1, 16, 17, 8, 64, 2)
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [4, 2]

    run(main)


def test_longer_than_every_bucket_is_an_input_error(run):
    async def main():
        batching = ml.Batching(pad=PAD, buckets={"length": (4, 16)})
        async with await echo(batching=batching) as model:
            with pytest.raises(ml.InputError, match=r"length 17 along axis 1 \('leng"):
                model.infer(ones(1, 17))
            with pytest.raises(ml.InputError, match="16, the largest bucket"):
                model.infer(ones(1, 17))

    run(main)


def test_mask_is_made_where_it_is_left_out(run):
    async def main():
        async with busy(pad=MASKED) as model:
            results = await infer_all(model, of_length(3, 4, rows=2))
            for n, (x, mask) in zip((3, 4), results, strict=True):
                assert x.shape == (2, n)
                assert mask.dtype == np.int64
                assert mask.tolist() == [[1] * n + [0] * (4 - n)] * 2

    run(main)


@pytest.mark.parametrize(
    "dtype", ["int64", "int32", "int8", "uint8", "float32", "float64", "bool"]
)
def test_mask_has_the_dtype_that_was_asked(run, dtype):
    async def main():
        pad = ml.Pad(LENGTH, mask=1, mask_dtype=dtype)
        async with busy(pad=pad) as model:
            (_, mask), _ = await infer_all(model, of_length(3, 4))
            assert mask.dtype == np.dtype(dtype)
            assert mask.astype(int).tolist() == [[1, 1, 1, 0]]

    run(main)


def test_mask_that_is_given_is_padded_and_does_not_mix_with_those_made(run):
    async def main():
        pad = ml.Pad(LENGTH, outputs={"length": {0: 1, 1: 1}}, mask=1)
        async with busy(pad=pad) as model:
            given = [np.array([[1, 0, 1]]), np.array([[0, 1, 1, 1]])]
            lengths = of_length(3, 4)
            futures = [model.infer(*xm) for xm in zip(lengths, given, strict=True)]
            futures += [model.infer(x) for x in lengths]
            model.release()
            results = await asyncio.gather(*futures)
            for (_, mask), expected in zip(results, given, strict=False):
                assert np.array_equal(mask, expected)
            assert [mask.all() for _, mask in results[2:]] == [True, True]
            assert model.seen[1:] == [2, 2]

    run(main)


def test_mask_of_another_length_than_its_input_is_an_input_error(run):
    async def main():
        async with await echo(batching=ml.Batching(pad=MASKED)) as model:
            with pytest.raises(ml.InputError, match="input 1 has length 3 along axis"):
                model.infer(ones(1, 4), ones(1, 3, dtype=np.int64))

    run(main)


def test_similar_lengths_go_together(run):
    async def main():
        async with busy(max_rows=8, pad=PAD) as model:
            inputs = of_length(10, 100, 11, 98, 12, 1000, 99, 10)
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [4, 3, 1]
            assert releases(model) == {"shape": 2, "drained": 1}
            assert 0 < model.stats().padding_waste < 0.25

    run(main)


def test_padding_adds_no_more_than_a_third_whatever_comes(run):
    async def main():
        generator = np.random.default_rng(7)
        async with busy(max_rows=16, pad=PAD) as model:
            lengths = generator.integers(1, 512, 300)
            inputs = of_length(*lengths.tolist())
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.stats().padding_waste <= 0.25
            assert model.stats().runs < 60

    run(main)


def test_cut_request_is_unpadded_too(run):
    async def main():
        async with busy(max_rows=4, pad=MASKED, buckets={"length": (8,)}) as model:
            (x, mask) = (await infer_all(model, of_length(5, rows=10)))[0]
            assert np.array_equal(x, counted(10, 5, first=1))
            assert mask.tolist() == [[1] * 5 + [0] * 3] * 10
            assert model.seen[1:] == [4, 4, 2]

    run(main)


def test_two_axes_are_padded_each_to_its_own_longest(run):
    axes = {"height": {0: 1}, "width": {0: 2}}

    async def main():
        async with busy(pad=ml.Pad(axes, outputs=axes)) as model:
            inputs = [counted(1, h, w, first=1) for h, w in ((4, 5), (3, 6), (4, 4))]
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [3]

    run(main)


def test_urgent_requests_lead_batches_of_their_own_length(run):
    async def main():
        async with busy(max_rows=8, pad=PAD) as model:
            futures = [model.infer(x) for x in of_length(10, 10, 10, rows=2)]
            futures.append(model.infer(ones(2, 100), priority=1))
            futures.append(model.infer(ones(1, 99), priority=-1))
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [3, 6]
            assert np.array_equal(futures[3].result(), ones(2, 100))

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
        ({"pad": PAD, "buckets": {"width": (4,)}}, "'width' is no axis of pad="),
        ({"pad": PAD, "buckets": {"length": ()}}, "expected ascending lengths, got ()"),
        ({"pad": PAD, "buckets": {"length": (8, 4)}}, "expected ascending lengths"),
        ({"pad": PAD, "buckets": {"length": (4, 4)}}, "expected ascending lengths"),
        ({"pad": PAD, "buckets": {"length": (0, 4)}}, "expected an int, 1 or more"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {}}, "Pad: inputs: expected 1 to 2 named axes"),
        ({"inputs": {key: {0: 1} for key in "abc"}}, "Pad: inputs: expected 1 to 2"),
        ({"inputs": {"length": {}}}, "Pad: inputs: no input has the axis 'length'"),
        ({"inputs": {"length": {0: -1}}}, "Pad: inputs['length'][0]: expected an int"),
        ({"inputs": {"length": {-1: 1}}}, "Pad: inputs['length']: expected a position"),
        (
            {"outputs": {"width": {0: 1}}},
            "'width' is no axis of the inputs, which have",
        ),
        ({"fill": {None: 1}}, "Pad: fill: expected a name or a position, got None"),
        ({"mask": 1.5}, "Pad: mask: expected a name or a position, got 1.5"),
        ({"mask_dtype": "int"}, "Pad: mask_dtype: expected one of int64, "),
    ],
    ids=str,
)
def test_pad_says_what_it_expected(arguments, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        ml.Pad(**{"inputs": LENGTH, **arguments})
    assert message in str(caught.value)


def test_load_says_what_batching_it_expected():
    with pytest.raises(TypeError, match="^batching: expected a Batching, got int"):
        ml.load("nothing.pt", batching=32)


# --- real models ---


torch: Any = None
with contextlib.suppress(ImportError):
    import torch


def archive(tmp_path: Path, module: Any) -> str:
    """A TorchScript file of the module: its path."""
    path = str(tmp_path / "model.pt")
    torch.jit.script(module.eval()).save(path)
    return path


@pytest.mark.torch
def test_names_of_inputs_that_do_not_exist_are_a_load_error(run, tmp_path):
    class Sum(torch.nn.Module):
        def forward(self, ids, other):
            return ids + other

    path = archive(tmp_path, Sum())
    ids = {"length": {"idz": 1}}

    async def main():
        for batching, message in [
            (ml.Batching(pad=ml.Pad(ids)), r"no input named 'idz'.*\(.*ids, other\)"),
            (ml.Batching(axes={"state": 1}), "no input named 'state'"),
            (ml.Batching(output_axes={"logits": 1}), "no output named 'logits'"),
            (ml.Batching(axes={2: 1}), "there is no input 2; the model takes 2"),
            (ml.Batching(pad=ml.Pad(LENGTH, mask="mask")), "no input named 'mask'"),
            (ml.Batching(pad=ml.Pad(LENGTH, fill={"x": 1})), "no input named 'x'"),
        ]:
            with pytest.raises(ml.LoadError, match=message):
                await ml.load(path, batching=batching)

    run(main)


@pytest.mark.torch
def test_batched_model_gives_the_numbers_of_one_by_one(run, tmp_path):
    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(16, 64)
            self.other = torch.nn.Linear(64, 5)

        def forward(self, x, scale: float):
            y = self.other(torch.relu(self.one(x)))
            return y * scale, {"top": y.argmax(1)}

    torch.manual_seed(3)
    path = archive(tmp_path, Classifier())
    inputs = [torch.randn(1 + n % 3, 16) for n in range(16)]
    rows = sum(len(x) for x in inputs)

    async def main():
        async with ml.load(path) as model:
            alone = [await model.infer(x, 2.0) for x in inputs]
        # The delay makes it wait for all of them, whatever comes between.
        batching = ml.Batching(max_rows=rows, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            together = await asyncio.gather(*(model.infer(x, 2.0) for x in inputs))
            assert model.stats().runs == 1
            assert model.stats().rows == rows
        for (y, top), (z, also) in zip(alone, together, strict=True):
            # Kernels for other sizes add up in another order: a few last bits.
            torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
            assert torch.equal(top["top"], also["top"])

    run(main)


@pytest.mark.torch
def test_model_whose_outputs_do_not_follow_the_batch_is_told_so_and_goes_on(
    run, tmp_path
):
    class Sometimes(torch.nn.Module):
        def forward(self, x):
            return x.sum(0) if x.size(1) == 1 else x

    path = archive(tmp_path, Sometimes())

    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            for error in await outcomes(model.infer(torch.ones(1, 1)) for _ in "four"):
                assert isinstance(error, ml.BackendError)
                assert "output 0 of the model has shape [1], expected 4 rows" in str(
                    error
                )
                assert "outputs follow the batch axis of its inputs" in str(error)
            assert model.stats().runs == 1  # no other run would help
            assert model.health().ok
            assert (await model.infer(torch.ones(4, 2))).shape == (4, 2)

    run(main)


@pytest.mark.torch
def test_inputs_with_names_have_their_own_batch_axes(run, tmp_path):
    class Step(torch.nn.Module):
        def forward(self, x, state):
            return x + state.sum(0), state + 1

    path = archive(tmp_path, Step())

    async def main():
        batching = ml.Batching(
            max_rows=6, max_delay=FOR_EVER, axes={"state": 1}, output_axes={1: 1}
        )
        async with ml.load(path, batching=batching) as model:
            requests = [(torch.rand(n, 3), torch.rand(2, n, 3)) for n in (1, 2, 3)]
            futures = [model.infer(state=state, x=x) for x, state in requests]
            for (x, state), (y, new) in zip(
                requests, await asyncio.gather(*futures), strict=True
            ):
                torch.testing.assert_close(y, x + state.sum(0))
                assert torch.equal(new, state + 1)
            assert model.stats().runs == 1

    run(main)


@pytest.mark.torch
def test_mask_of_a_named_input_is_made_and_outputs_are_unpadded(run, tmp_path):
    class Centre(torch.nn.Module):
        def forward(self, ids, mask):
            real = mask.sum(1, keepdim=True)
            return ids - (ids * mask).sum(1, keepdim=True) / real

    path = archive(tmp_path, Centre())
    pad = ml.Pad(
        {"length": {"ids": 1}},
        outputs={"length": {0: 1}},
        fill={"ids": 1000},
        mask="mask",
        mask_dtype="float32",
    )

    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER, pad=pad)
        async with ml.load(path, batching=batching) as model:
            inputs = [torch.rand(1, n) for n in (7, 8, 6, 7)]
            for x, y in zip(
                inputs, await asyncio.gather(*map(model.infer, inputs)), strict=True
            ):
                torch.testing.assert_close(y, x - x.mean(1, keepdim=True))
            assert model.stats().runs == 1
            assert model.stats().padding_waste == pytest.approx(4 / 32)

    run(main)
