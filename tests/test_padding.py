"""Requests of different lengths in one run."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from batches import busy, counted, ones, releases

import pyasyncml as ml
from pyasyncml.testing import echo

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


def of_size(*sizes):
    return [counted(1, h, w, first=1) for h, w in sizes]


def test_padding_adds_no_more_than_a_third_over_all_axes_together(run):
    """It was held against the first axis alone."""
    axes = {"height": {0: 1}, "width": {0: 2}}

    async def main():
        async with busy(max_rows=8, pad=ml.Pad(axes, outputs=axes)) as model:
            inputs = of_size((4, 100), (4, 5), (4, 99), (4, 6), (90, 5))
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [2, 2, 1]
            assert releases(model) == {"shape": 2, "drained": 1}
            stats = model.stats()
            assert stats.cells == 2 * 4 * 100 + 2 * 4 * 6 + 90 * 5
            assert stats.padding_cells == 4 * 1 + 4 * 1

        generator = np.random.default_rng(7)
        async with busy(max_rows=16, pad=ml.Pad(axes, outputs=axes)) as model:
            inputs = of_size(*generator.integers(1, 40, (200, 2)).tolist())
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.stats().padding_waste <= 0.25
            assert model.stats().runs < 80

    run(main)


def test_second_axis_counts_where_the_first_one_has_buckets(run):
    axes = {"height": {0: 1}, "width": {0: 2}}

    async def main():
        pad = ml.Pad(axes, outputs=axes)
        async with busy(max_rows=8, pad=pad, buckets={"height": (8,)}) as model:
            inputs = of_size((4, 100), (5, 10), (3, 99), (6, 11))
            results = await infer_all(model, inputs)
            for x, y in zip(inputs, results, strict=True):
                assert np.array_equal(x, y)
            assert model.seen[1:] == [2, 2]

    run(main)


def test_axes_of_different_inputs_add_up(run):
    """A sequence to read and one to write: nobody has the area of both."""
    axes = {"source": {0: 1}, "target": {1: 1}}

    async def main():
        async with busy(max_rows=8, pad=ml.Pad(axes, outputs=axes)) as model:
            requests = [
                (counted(1, source), counted(1, target))
                for source, target in ((100, 10), (100, 60), (100, 11))
            ]
            futures = [model.infer(*inputs) for inputs in requests]
            model.release()
            for inputs, outputs in zip(
                requests, await asyncio.gather(*futures), strict=True
            ):
                for x, y in zip(inputs, outputs, strict=True):
                    assert np.array_equal(x, y)
            assert model.seen[1:] == [3]  # 100 of 480: less than a third of 381
            assert model.stats().cells == 3 * (100 + 60)
            assert model.stats().padding_cells == 50 + 49

    run(main)


def test_memory_caps_of_longer_requests_hold_for_runs_that_they_are_in(run):
    async def main():
        async with busy(max_rows=8, pad=PAD) as model:
            model.limit_rows(2)
            futures = [model.infer(x) for x in of_length(*[12] * 4)]
            model.release()
            await asyncio.gather(*futures)
            assert model.seen[1:] == [4, 2, 2]  # so long: two are all that fit
            model.limit_rows(0)
            model.hold()
            begun = model.begun(model.runs + 1)
            first = model.infer(["again"])
            await begun
            # Another class of lengths leads, whose cap isn't known.
            futures = [model.infer(x) for x in of_length(11, 12, 12, 12)]
            model.release()
            await asyncio.gather(first, *futures)
            assert model.seen[-2:] == [2, 2]

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


# --- arguments ---


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
