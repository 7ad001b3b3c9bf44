"""What comes out of `infer` is the caller's."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from pyasyncml.testing import echo


def test_output_is_writable_and_shares_nothing_with_the_input(run):
    async def main():
        async with await echo() as model:
            x = np.arange(6.0).reshape(2, 3)
            y = await model.infer(x)
            assert y.flags.writeable
            assert y.flags.c_contiguous
            assert not np.shares_memory(x, y)
            y += 1
            assert np.array_equal(x, np.arange(6.0).reshape(2, 3))

    run(main)


def test_outputs_of_two_requests_share_nothing(run):
    async def main():
        async with await echo() as model:
            first, second = await asyncio.gather(*map(model.infer, [np.ones(3)] * 2))
            first[:] = 5
            assert np.array_equal(second, np.ones(3))

    run(main)


def test_outputs_are_aligned_to_a_cache_line(run):
    async def main():
        async with await echo() as model:
            for n in (1, 3, 100, 10_000):
                assert (await model.infer(np.zeros(n))).ctypes.data % 64 == 0

    run(main)


def test_output_outlives_its_model_its_loop_and_its_future(run):
    async def main():
        async with await echo() as model:
            results = await asyncio.gather(
                *(model.infer(np.full(1000, n)) for n in range(20))
            )
        return weakref.ref(model), results

    gone, results = run(main)
    gc.collect()
    assert gone() is None
    for n, result in enumerate(results):
        assert (result == n).all()
        result += 1


def test_result_is_one_object_however_often_it_is_asked_for(run):
    async def main():
        async with await echo() as model:
            future = model.infer(np.ones(3))
            y = await future
            assert y is future.result()
            assert y is await future

    run(main)


def test_result_nobody_looks_at_is_freed_with_its_future(run):
    async def main():
        async with await echo() as model:
            for _ in range(50):
                future = model.infer(np.zeros(1_000_000))
                await asyncio.wait([future])
                assert future.done()
            peak = resident_bytes()
            for _ in range(200):
                await asyncio.wait([model.infer(np.zeros(1_000_000))])
            assert resident_bytes() - peak < 20 * 8_000_000

    run(main)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_views_of_an_output_keep_its_memory(run):
    async def main():
        async with await echo() as model:
            view = (await model.infer(np.arange(100_000)))[10:20]
            for n in range(20):
                await model.infer(np.full(100_000, n))
            assert np.array_equal(view, np.arange(10, 20))

    run(main)


def test_run_direct_does_the_same_in_the_calling_thread(run):
    async def main():
        async with await echo() as model:
            x = np.arange(5, dtype=np.int16)
            y = model.run_direct(x, "text")
            assert np.array_equal(y[0], x)
            assert y[1] == "text"
            model.fail(1, "direct")
            with pytest.raises(RuntimeError, match="direct"):
                model.run_direct(x)

    run(main)
