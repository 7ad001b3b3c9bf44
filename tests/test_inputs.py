"""What may go into `infer`, and what is refused."""

from __future__ import annotations

import array
import asyncio
import ctypes
import mmap
import weakref

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]


def through(run, *inputs):
    """What an echo model makes of the inputs."""

    async def main():
        async with await echo() as model:
            return await model.infer(*inputs)

    return run(main)


def same(x, y):
    assert type(y) is np.ndarray
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert np.array_equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_numpys_numbers_passes(run, dtype):
    x = np.array([[0, 1, 2], [100, 101, 1]]).astype(dtype)
    same(x, through(run, x))


F = np.arange(24.0).reshape(2, 3, 4)
RECORDS = np.zeros(4, dtype=[("flag", "u1"), ("value", "<f8"), ("number", "<i2")])
RECORDS["value"] = [1.5, 2.5, 3.5, 4.5]
RECORDS["number"] = [1, 2, 3, 4]


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(np.array(2.5), id="0-d"),
        pytest.param(np.float32(2.5), id="numpy scalar"),
        pytest.param(np.bool_(True), id="numpy bool"),
        pytest.param(np.zeros(0), id="empty"),
        pytest.param(np.zeros((3, 0, 2), np.int8), id="zero-size"),
        pytest.param(np.zeros((4, 0))[::-1, ::2], id="zero-size strided"),
        pytest.param(F[:, ::2, 1:], id="non-contiguous"),
        pytest.param(F[::-1, :, ::-2], id="negative strides"),
        pytest.param(F.T, id="transposed"),
        pytest.param(np.asfortranarray(F), id="Fortran"),
        pytest.param(np.broadcast_to(np.arange(3), (4, 3)), id="broadcast"),
        pytest.param(RECORDS["value"], id="field at an odd stride"),
        pytest.param(RECORDS["number"][::-1], id="field backwards"),
        pytest.param(np.zeros((1,) * 32), id="32 dimensions"),
        pytest.param(np.frombuffer(bytes(17), "u1")[1:].view("<f8"), id="unaligned"),
    ],
)
def test_every_layout_passes(run, x):
    same(np.asarray(x), through(run, x))


def test_readonly_array_passes(run):
    x = np.arange(3)
    x.flags.writeable = False
    same(x, through(run, x))


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8", "c8"])
def test_foreign_byte_order_is_refused(run, dtype):
    x = np.arange(3).astype(np.dtype(dtype).newbyteorder())
    with pytest.raises(TypeError, match="input 0: .* native byte order"):
        through(run, x)


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_array_of_every_number_passes(run, code):
    x = array.array(code, [1, 2, 3])
    same(np.asarray(x), through(run, x))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(bytearray(b"abcdef"), id="bytearray"),
        pytest.param(memoryview(b"abcdef"), id="memoryview"),
        pytest.param(memoryview(bytearray(b"abcdef"))[::-2], id="strided memoryview"),
        pytest.param(
            memoryview(bytes(range(24))).cast("B", (2, 3, 4)), id="3-d memoryview"
        ),
        pytest.param((ctypes.c_int32 * 3)(1, 2, 3), id="ctypes"),
    ],
)
def test_anything_that_lends_numbers_passes(run, x):
    same(np.asarray(x), through(run, x))


def test_shape_of_borrowed_bytes_is_kept_until_the_run(run):
    """A bytearray's Py_buffer holds its shape within itself: once it was copied, the
    shape was read from a stack frame long gone."""

    async def main():
        async with await echo() as model:
            model.hold()
            with mmap.mmap(-1, 4096) as memory:
                futures = [model.infer(bytearray(b"abcdef")), model.infer(memory)]
                await model.begun(1)
                sorted(range(1000), key=lambda n: str(n))  # other frames on the stack
                model.infer(F[::-1])
                model.release()
                first, second = await asyncio.gather(*futures)
                assert bytes(first) == b"abcdef"
                assert second.shape == (4096,)
                await model.infer(0)
                # What was borrowed has been given back: else it can't be closed.

    run(main)


@pytest.mark.parametrize(
    "x",
    [
        *(None, True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -2.5, float("inf")),
        *("", "text", "größer \U0001f40d \0", b"", b"\x00\xff", (), [], {}),
        (1, [2.0, "three", None], {"four": (5,), 6: b"7"}),
        [[[[[]]]]],
        {"a": {"b": {"c": []}}},
        [(), {}, (None,), [True]],
    ],
    ids=repr,
)
def test_scalars_strings_and_structures_pass_as_they_are(run, x):
    y = through(run, x)
    assert type(y) is type(x)
    assert y == x


def test_tensors_pass_within_structures(run):
    y = through(run, {"a": [F, (np.int8(3), None)], "b": array.array("d", [1])})
    same(F, y["a"][0])
    same(np.array(3, np.int8), y["a"][1][0])
    assert y["a"][1][1] is None
    same(np.array([1.0]), y["b"])


def test_not_a_number_passes(run):
    assert np.isnan(through(run, float("nan")))


def test_large_structure_passes(run):
    x = [(n, str(n)) for n in range(20_000)]
    assert through(run, x) == x


class Lender:
    """Lends through DLPack alone."""

    def __init__(self, array, *, versions=True):
        self.array = array
        self.versions = versions

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **kwargs):
        if not self.versions and kwargs:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.array.__dlpack__(**kwargs)


@pytest.mark.parametrize("versions", [True, False], ids=["versioned", "unversioned"])
def test_dlpack_passes_in_its_old_and_its_new_form(run, versions):
    x = np.arange(12.0).reshape(3, 4)[:, ::2]
    same(x, through(run, Lender(x, versions=versions)))


def test_input_is_released_once_it_has_run(run):
    async def main():
        async with await echo() as model:
            x, y = np.arange(3), np.arange(6.0)
            gone = weakref.ref(x), weakref.ref(y)
            future = model.infer(x, {"y": [Lender(y)]})
            del x, y
            result = await future
            assert [ref() for ref in gone] == [None, None]
            del result

    run(main)


def test_input_is_borrowed_while_it_waits(run):
    async def main():
        async with await echo() as model:
            model.hold()
            model.infer(0)
            x = np.zeros(3)
            memory = bytearray(3)
            futures = [model.infer(x), model.infer(memory)]
            x[:] = 7
            with pytest.raises(BufferError):
                memory.append(0)
            model.release()
            assert np.array_equal(await futures[0], [7, 7, 7])
            await futures[1]
            memory.append(0)

    run(main)


# --- what is refused ---


class Broken:
    def __dlpack__(self, **kwargs):
        raise ValueError("nothing to lend")

    def __dlpack_device__(self):
        return 1, 0


class Liar(Broken):
    def __dlpack__(self, **kwargs):
        return "no capsule"


@pytest.mark.parametrize(
    "x",
    [
        *(object(), {1, 2}, range(3), 1j, int, len, Broken(), Liar(), iter([])),
        *(np.array([object()]), np.array([None]), RECORDS),
        *(np.longdouble(1), np.array([1], "M8[s]"), memoryview(b"abc").cast("c")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_tensor_is_refused_by_the_name_of_the_argument(run, x):
    async def main():
        async with await echo() as model:
            with pytest.raises(TypeError, match=r"^input 1: "):
                model.infer(F, x)
            with pytest.raises(TypeError, match=r"^input 2: "):
                model.infer(F, None, [F, {"key": x}])
            assert await model.infer(1) == 1
            assert model.runs == 1

    run(main)


def test_refusal_keeps_its_cause(run):
    with pytest.raises(TypeError, match="a Broken can't be lent") as caught:
        through(run, Broken())
    assert str(caught.value.__cause__) == "nothing to lend"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_integer_past_64_bits_is_an_input_error(run, number):
    with pytest.raises(ml.InputError, match="input 0: .* 64 bits") as caught:
        through(run, number)
    assert isinstance(caught.value, ValueError)


def test_structure_that_contains_itself_is_an_input_error(run):
    x = []
    x.append(x)
    with pytest.raises(ml.InputError, match="input 0: is nested deeper than"):
        through(run, x)


def test_text_that_has_no_utf8_is_an_input_error(run):
    with pytest.raises(ml.InputError, match="input 0: the text") as caught:
        through(run, "\udc80")
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)


@pytest.mark.parametrize("priority", [1.0, "1", None])
def test_priority_that_is_no_int_is_a_type_error(run, priority):
    async def main():
        async with await echo() as model:
            with pytest.raises(TypeError, match="^priority: expected an int"):
                model.infer(1, priority=priority)

    run(main)


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1, 10**30])
def test_priority_past_32_bits_is_a_value_error(run, priority):
    async def main():
        async with await echo() as model:
            with pytest.raises(ValueError, match="^priority: expected an int of 32"):
                model.infer(1, priority=priority)

    run(main)
