"""What goes in comes out, on every kind of loop."""

from __future__ import annotations

import array
import asyncio
import gc
import warnings

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip


def test_every_dtype_comes_back_as_it_went(run):
    async def main():
        async with await echo() as model:
            for dtype in DTYPES:
                x = np.arange(12).reshape(3, 4).astype(dtype)
                y = await model.infer(x)
                assert y.dtype == x.dtype
                assert np.array_equal(x, y)

    run(main)


@pytest.mark.parametrize(
    "x",
    [
        np.float32(2.5),
        np.array(3.0),
        np.zeros((0, 4), "f"),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-1],
        np.arange(20).reshape(4, 5)[::2, 1::3],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.broadcast_to(np.arange(3), (2, 3)),
        np.zeros(3, dtype=[("a", "i1"), ("b", "<f4")])["b"],
        np.frombuffer(b"\0\0\0\0\x01\0\0\0", "<i4"),
    ],
    ids=[
        "scalar", "0-d", "empty", "transposed", "reversed", "sliced", "fortran",
        "broadcast", "field", "read-only",
    ],
)  # fmt: skip
def test_any_layout_is_taken(run, x):
    async def main():
        async with await echo() as model:
            y = await model.infer(x)
            assert y.shape == x.shape
            assert np.array_equal(x, y)

    run(main)


def test_other_owners_of_memory_are_taken(run):
    async def main():
        async with await echo() as model:
            numbers = array.array("d", [1.0, 2.0])
            assert (await model.infer(numbers)).tolist() == [1.0, 2.0]
            assert (await model.infer(memoryview(b"abc"))).tolist() == [97, 98, 99]
            assert (await model.infer(bytearray(b"ab"))).tolist() == [97, 98]
            view = memoryview(bytearray(range(6))).cast("B", (2, 3))
            assert (await model.infer(view)).tolist() == [[0, 1, 2], [3, 4, 5]]

    run(main)


def test_structures_numbers_and_strings_come_back_whole(run):
    async def main():
        async with await echo() as model:
            given = {"a": [1, 2.5, (True, None)], "b": "ü", 3: {"c": b"\0\xff"}}
            assert await model.infer(given) == given
            assert await model.infer() == ()
            assert await model.infer(1, "x") == (1, "x")
            tensors = await model.infer([np.ones(2), {"k": np.zeros(1)}])
            assert tensors[0].tolist() == [1, 1]
            assert tensors[1]["k"].tolist() == [0]

    run(main)


def test_a_dlpack_producer_without_a_buffer_is_taken(run):
    class Producer:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class Old(Producer):
        def __dlpack__(self):
            return self.array.__dlpack__()

    async def main():
        async with await echo() as model:
            for kind in (Producer, Old):
                y = await model.infer(kind(np.arange(4.0)))
                assert y.tolist() == [0, 1, 2, 3]

    run(main)


def test_what_is_no_tensor_is_refused_by_name_at_the_call(run):
    class Odd:
        pass

    class Liar:
        def __dlpack__(self, **kwargs):
            return "no capsule"

    async def main():
        async with await echo() as model:
            for wrong in (Odd(), 1j, {1, 2}, print, Liar()):
                with pytest.raises(TypeError, match="input 1"):
                    model.infer(np.ones(1), wrong)
            with pytest.raises(TypeError, match="byte order"):
                model.infer(np.arange(3).astype(">i4"))
            with pytest.raises(TypeError, match="input 0"):
                model.infer(np.array([object()]))
            with pytest.raises(ml.InputError, match="64 bits"):
                model.infer(2**64)
            with pytest.raises(ml.InputError, match="nested"):
                deep = []
                for _ in range(40):
                    deep = [deep]
                model.infer(deep)
            with pytest.raises(ml.InputError, match="no input named 'x'"):
                model.infer(x=1)
            assert await model.infer(1) == 1  # goes on
            assert model.stats().submitted == 1

    run(main)


def test_an_error_of_the_producer_is_the_cause(run):
    class Broken:
        def __dlpack__(self, **kwargs):
            raise ZeroDivisionError("inside")

    async def main():
        async with await echo() as model:
            with pytest.raises(TypeError, match="DLPack") as caught:
                model.infer(Broken())
            assert isinstance(caught.value.__cause__, ZeroDivisionError)

    run(main)


def test_outputs_are_the_callers(run):
    async def main():
        async with await echo() as model:
            x = np.arange(4.0)
            y, z = await model.infer(x), await model.infer(x)
            y[:] = -1
            assert x.tolist() == z.tolist() == [0, 1, 2, 3]
        del model
        gc.collect()
        return y

    assert run(main).tolist() == [-1, -1, -1, -1]


def test_inputs_are_borrowed_until_the_run_ends_and_not_longer(run):
    async def main():
        async with await echo() as model:
            model.hold()
            memory = bytearray(8)
            future = model.infer(memory)
            with pytest.raises(BufferError):
                memory.append(1)  # lent
            model.release()
            await future
            memory.append(1)

    run(main)


def test_a_result_can_be_asked_for_again(run):
    async def main():
        async with await echo() as model:
            future = model.infer(np.ones(2))
            y = await future
            assert future.result() is y
            assert await future is y
            assert future.exception() is None
            assert repr(future).startswith("<Future finished result=")

    run(main)


def test_a_future_nobody_awaits_still_runs(run):
    async def main():
        async with await echo() as model:
            model.infer(1)
            await model.begun(1)
            assert model.runs == 1

    run(main)


def test_infer_needs_a_running_loop(run):
    async def main():
        return await echo()

    model = run(main)
    with pytest.raises(RuntimeError, match="no running event loop"):
        model.infer(1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        model.close()
    run(model.close_later if hasattr(model, "close_later") else _closer(model))


def _closer(model):
    async def main():
        await model.close()

    return main


def test_scripted_failures_arrive_and_the_model_goes_on(run):
    async def main():
        async with await echo() as model:
            model.fail(1, "broken on purpose")
            with pytest.raises(ml.BackendError, match="broken on purpose"):
                await model.infer(1)
            model.fail(1, "too big", memory=True)
            with pytest.raises(MemoryError, match="too big"):
                await model.infer(1)
            assert await model.infer(2) == 2
            stats = model.stats()
            assert (stats.failed, stats.completed) == (2, 1)

    run(main)


def test_ten_thousand_at_once_all_come_back(run):
    async def main():
        async with await echo(instances=2) as model:
            found = await asyncio.gather(*map(model.infer, range(10_000)))
            assert found == list(range(10_000))

    run(main)


def test_urgent_requests_run_first(run):
    async def main():
        async with await echo() as model:
            model.hold()
            first = model.infer(np.ones(9))
            await model.begun(1)
            rest = [
                model.infer(np.ones(rows), priority=priority)
                for rows, priority in ((1, 0), (2, 5), (3, -1), (4, 5))
            ]
            model.release()
            await asyncio.gather(first, *rest)
            assert model.seen == [9, 2, 4, 1, 3]
            for wrong, error in (("high", TypeError), (2**40, ValueError)):
                with pytest.raises(error, match="priority"):
                    model.infer(1, priority=wrong)

    run(main)


def test_stats_and_health_tell_what_is(run):
    async def main():
        async with await echo(instances=2, name="parrot") as model:
            assert model.health().ok
            model.hold()
            futures = [model.infer(np.ones(4)) for _ in range(5)]
            await model.begun(2)
            stats = model.stats()
            assert (stats.submitted, stats.waiting, stats.running) == (5, 3, 2)
            assert stats.waiting_bytes == 3 * 32
            assert model.health().longest_run >= 0
            model.release()
            await asyncio.gather(*futures)
            stats = model.stats()
            assert (stats.completed, stats.waiting, stats.running) == (5, 0, 0)
            assert stats.backend == "echo"
            assert stats.devices == ("cpu",)
            assert len(stats.busy) == 2
            assert stats.run_p99 >= stats.run_p50 > 0
            assert "parrot" in repr(model)
            assert model.signature.variadic
        health = model.health()
        assert (health.status, health.instances_alive) == ("closed", 0)
        assert not health.ok

    run(main)


def test_without_numpy_memory_comes_back_as_a_tensor_object():
    from pyasyncml import _core

    assert issubclass(_core.Tensor, object)
    with pytest.raises(TypeError):
        _core.Tensor()


def test_warnings_stay_errors():
    with pytest.raises(UserWarning):
        warnings.warn("tests run with warnings as errors", stacklevel=1)
