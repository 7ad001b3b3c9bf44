"""Tensors of strings: what goes in, what comes out, and who keeps their bytes."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest
from batches import busy, outcomes

import pyasyncml as ml
from pyasyncml.testing import echo


async def echoed(value, **options):
    async with await echo(**options) as model:
        return await model.infer(value)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bé", "", "nul\0inside"], object),
        np.array([["a", "bc"], ["日本", "e"]]),
        np.array(["u", "v", "w"])[::-2],
        np.array("no axes", object),
        np.empty((0, 3), object),
    ],
)
def test_texts_come_back_as_an_object_array_of_str(run, array):
    result = run(lambda: echoed(array))
    assert result.dtype == object
    assert result.shape == array.shape
    assert result.tolist() == array.tolist()


def test_bytes_come_back_as_bytes_and_one_of_them_makes_all_so(run):
    result = run(lambda: echoed(np.array([b"x\0y", b""], "S5")))
    assert result.tolist() == [b"x\0y", b""]
    result = run(lambda: echoed(np.array(["a", b"\xff"], object)))
    assert result.tolist() == [b"a", b"\xff"]


def test_an_element_that_is_no_string_is_refused_by_its_type(run):
    with pytest.raises(TypeError, match=r"input 0: .*an element that is a float"):
        run(lambda: echoed(np.array(["a", 1.5], object)))
    with pytest.raises(ml.InputError, match="can't be encoded"):
        run(lambda: echoed(np.array(["\udc80"], object)))


def test_the_caller_may_drop_and_change_what_was_lent(run):
    async def main():
        async with await echo() as model:
            array = np.array([f"{'long ' * 50}{i}" for i in range(100)], object)
            model.hold()
            future = model.infer(array)
            array[:] = "other"
            del array
            gc.collect()
            model.release()
            return (await future).tolist()

    assert run(main) == [f"{'long ' * 50}{i}" for i in range(100)]


def test_requests_of_strings_share_a_run_and_each_keeps_its_own_bytes(run):
    async def main():
        sent = [
            np.array([f"{i}.{row}" * (i + 1) for row in range(1 + i % 3)], object)
            for i in range(30)
        ]
        async with busy(max_rows=100) as model:
            futures = [model.infer(array) for array in sent]
            model.release()
            results = await asyncio.gather(*futures)
            assert model.seen[1:] == [sum(map(len, sent))]
        gc.collect()  # what a batch owned must not be what its results point to
        for array, result in zip(sent, results, strict=True):
            assert result.tolist() == array.tolist()

    run(main)


def test_a_request_of_more_rows_than_a_run_is_cut_and_joined(run):
    array = np.array([f"row {i}" for i in range(41)], object)
    result = run(lambda: echoed(array, batching=ml.Batching(max_rows=8)))
    assert result.tolist() == array.tolist()


def test_rows_of_strings_are_padded_with_empty_ones(run):
    async def main():
        async with busy(pad=ml.Pad({"length": {0: 1}})) as model:
            futures = [model.infer(np.array([["w"] * n], object)) for n in (3, 4)]
            model.release()
            short, long = await asyncio.gather(*futures)
            assert short.tolist() == [["w", "w", "w", ""]]
            assert long.tolist() == [["w"] * 4]

    run(main)


def test_scalars_share_a_run_only_where_they_are_equal(run):
    async def main():
        async with busy() as model:
            words = ["a", "b", "a"]
            futures = [
                model.infer(np.zeros((1, 2)), np.array(w, object)) for w in words
            ]
            model.release()
            await outcomes(futures)  # the echo gives them back without rows: errors
            assert max(model.seen[1:]) == 2

    run(main)


def test_the_queues_bound_counts_the_strings_bytes(run):
    async def main():
        async with busy() as model:
            future = model.infer(np.array(["x" * 100_000], object))
            assert model.stats().waiting_bytes >= 100_000
            model.release()
            await future

    run(main)
