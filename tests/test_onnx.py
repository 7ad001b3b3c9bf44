"""ONNX files through `pyasyncml.load`: what goes in and comes out, what is refused."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from batches import FOR_EVER

import pyasyncml as ml

onnx = pytest.importorskip("onnx")
# Not imported: no test here needs more than its library.
if importlib.util.find_spec("onnxruntime") is None:
    pytest.skip("onnxruntime is not installed", allow_module_level=True)

import onnx_models as models  # noqa: E402
from onnx_models import FLOAT, constant, node, tensor  # noqa: E402

TYPES = onnx.TensorProto


def infer(path, *inputs, **named):
    """One request to a model that is loaded for it."""

    async def main():
        async with ml.load(path) as model:
            return await model.infer(*inputs, **named)

    return asyncio.run(main())


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert np.array_equal(got, expected)


# --- types and shapes ---


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        *((FLOAT, "f4"), (TYPES.DOUBLE, "f8"), (TYPES.FLOAT16, "f2")),
        *((TYPES.INT8, "i1"), (TYPES.INT16, "i2"), (TYPES.INT32, "i4")),
        *((TYPES.INT64, "i8"), (TYPES.UINT8, "u1"), (TYPES.UINT16, "u2")),
        *((TYPES.UINT32, "u4"), (TYPES.UINT64, "u8"), (TYPES.BOOL, "?")),
    ],
)
def test_every_numeric_type_goes_in_and_comes_out(tmp_path, element, dtype):
    path = models.unary(tmp_path / "m.onnx", element=element)
    same(infer(path, x := np.arange(8).reshape(2, 4).astype(dtype)), x)


def test_bfloat16_and_small_floats_go_in_and_come_out(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for element, dtype in [
        (TYPES.BFLOAT16, ml_dtypes.bfloat16),
        (TYPES.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TYPES.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
        (TYPES.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TYPES.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
    ]:
        path = models.unary(tmp_path / "m.onnx", element=element, opset=19)
        same(infer(path, x := np.arange(8).reshape(2, 4).astype(dtype)), x)
        same(infer(path, x[:, ::2].repeat(2, 1)), x[:, ::2].repeat(2, 1))


@pytest.mark.torch
def test_torch_tensors_in_give_torch_tensors_out_bfloat16_too(tmp_path):
    torch = pytest.importorskip("torch")
    for element, dtype in [(FLOAT, torch.float32), (TYPES.BFLOAT16, torch.bfloat16)]:
        path = models.unary(tmp_path / "m.onnx", element=element)
        y = infer(path, x := torch.arange(8).reshape(2, 4).to(dtype))
        assert y.dtype == dtype
        assert torch.equal(x, y)


def test_strings_go_in_as_lists_arrays_and_bytes(tmp_path):
    path = models.unary(tmp_path / "m.onnx", element=TYPES.STRING, shape=["n"])
    words = ["plain", "zwölf", "", "nul\0inside", "long " * 100]
    assert infer(path, words).tolist() == words
    assert infer(path, np.array(words, object)).tolist() == words
    assert infer(path, np.array(["a", "bc"])).tolist() == ["a", "bc"]
    assert infer(path, [b"by", "and text"]).tolist() == ["by", "and text"]
    for encoded in (np.array([b"a", b"", b"bc"]), np.array([b"ab", b"c"] * 3)[::-2]):
        assert encoded.dtype.kind == "S"
        assert infer(path, encoded).tolist() == [t.decode() for t in encoded]
    assert infer(path, []).shape == (0,)
    assert infer(path, np.array(words, object)[::-2]).tolist() == words[::-2]
    with pytest.raises(ml.InputError, match=r"'x': expected shape \[\?\], got \[\]"):
        infer(path, "one")
    with pytest.raises(TypeError, match="'x': expected str or bytes"):
        infer(path, np.ones(3))
    with pytest.raises(ml.InputError, match="'x': lists of one depth differ"):
        infer(path, [["a"], ["b", "c"]])


def test_a_scalar_takes_a_number_a_string_or_an_array_of_no_axes(tmp_path):
    path = models.unary(tmp_path / "m.onnx", element=TYPES.INT64, shape=[])
    assert infer(path, 7) == 7
    assert infer(path, np.array(7)) == 7
    assert infer(path, np.int64(7)) == 7
    with pytest.raises(TypeError, match="'x'"):
        infer(path, 7.5)
    path = models.unary(tmp_path / "u8.onnx", element=TYPES.UINT8, shape=[])
    with pytest.raises(ml.InputError, match="'x': the int isn't one of uint8"):
        infer(path, 256)
    path = models.unary(tmp_path / "f.onnx", shape=[])
    assert infer(path, 7) == 7.0
    path = models.unary(tmp_path / "s.onnx", element=TYPES.STRING, shape=[])
    assert infer(path, "one").item() == "one"


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_number_becomes_the_nearest_of_a_short_float(tmp_path, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    path = models.unary(
        tmp_path / "m.onnx", element=getattr(TYPES, name.upper()), shape=[]
    )
    values = [0.0, -0.0, 1 / 3, 65519.0, 65520.0, 3e-8, 1e-40, np.inf, 7, True]

    async def main():
        async with ml.load(path) as model:
            return [await model.infer(value) for value in values]

    for value, result in zip(values, asyncio.run(main()), strict=True):
        with np.errstate(over="ignore"):
            expected = np.float64(value).astype(dtype)
        assert result.dtype == dtype
        assert result.tobytes() == expected.tobytes(), value


def test_a_large_int_is_a_uint64_where_one_is_taken(tmp_path):
    path = models.unary(tmp_path / "u8.onnx", element=TYPES.UINT64, shape=[])
    for number in (0, 2**63 - 1, 2**63, 2**64 - 1):
        same(infer(path, number), np.array(number, np.uint64))
    for number in (2**64, -(2**70)):
        with pytest.raises(ml.InputError, match="'x': the number doesn't fit in 64"):
            infer(path, number)
    with pytest.raises(ml.InputError, match="'x': the int isn't one of uint64"):
        infer(path, -1)
    path = models.unary(tmp_path / "i8.onnx", element=TYPES.INT64, shape=[])
    with pytest.raises(ml.InputError, match="'x': the number doesn't fit in 64 bits"):
        infer(path, 2**63)


@pytest.mark.parametrize(
    "x",
    [
        np.arange(24, dtype=np.float32).reshape(4, 6)[:, 1:5],
        np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 4)),
        np.arange(8, dtype=np.float32).reshape(2, 4)[::-1, ::-1],
        np.frombuffer(bytes(33), np.uint8)[1:].view(np.float32).reshape(2, 4),
        np.empty((0, 4), np.float32),
    ],
    ids=["sliced", "fortran", "backwards", "unaligned", "empty"],
)
def test_memory_of_any_layout_is_read(tmp_path, x):
    same(infer(models.scale(tmp_path / "m.onnx", 2.0), x), x * np.float32(2))


def test_symbolic_axes_are_any_size_and_the_rest_is_checked(tmp_path):
    path = models.unary(tmp_path / "m.onnx", shape=["n", 4, "length"])

    async def main():
        async with ml.load(path) as model:
            (spec,) = model.signature.inputs
            assert spec == ml.TensorSpec(
                "x", "tensor(float)", ("tensor",), "float32", (None, 4, None), False
            )
            for rows, length in [(1, 1), (3, 7), (2, 0)]:
                x = np.ones((rows, 4, length), np.float32)
                same(await model.infer(x), x)
            with pytest.raises(ml.InputError, match=r"\[\?, 4, \?\], got \[1, 5, 1\]"):
                model.infer(np.ones((1, 5, 1), np.float32))
            with pytest.raises(ml.InputError, match="expected dtype float32"):
                model.infer(np.ones((1, 4, 1)))

    asyncio.run(main())


# --- names, defaults, several of them ---


def test_inputs_by_name_and_outputs_in_order(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("Sub", ["a", "b"], ["less"]), node("Add", ["a", "b"], ["more"])],
        [tensor("a", FLOAT, ["n"]), tensor("b", FLOAT, ["n"])],
        [tensor("less", FLOAT, ["n"]), tensor("more", FLOAT, ["n"])],
    )
    a, b = np.float32([5, 6]), np.float32([1, 2])
    for less, more in [infer(path, a, b), infer(path, b=b, a=a)]:
        same(less, a - b)
        same(more, a + b)
    with pytest.raises(ml.InputError, match=r"no input named 'c'.*\(a, b\)"):
        infer(path, a, c=b)
    with pytest.raises(ml.InputError, match="'b' is missing"):
        infer(path, a)


def test_an_input_with_an_initialiser_may_be_left_out(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("Mul", ["x", "by"], ["z"]), node("Add", ["z", "plus"], ["y"])],
        [
            tensor("x", FLOAT, ["n"]),
            tensor("by", FLOAT, [1]),
            tensor("plus", FLOAT, [1]),
        ],
        [tensor("y", FLOAT, ["n"])],
        [
            constant(np.float32([3]), "by"),
            constant(np.float32([10]), "plus"),
        ],
    )
    x = np.float32([1, 2])
    same(infer(path, x), x * 3 + 10)
    same(infer(path, x, plus=np.float32([0])), x * 3)
    same(infer(path, x, by=np.float32([1])), x + 10)


def test_an_output_that_is_an_input_or_a_weight_is_the_callers_own(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("Identity", ["x"], ["y"])],
        [tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, ["n"]), tensor("x", FLOAT, ["n"]), tensor("w", FLOAT, [2])],
        [constant(np.float32([1, 2]), "w")],
        check=False,
    )

    async def main():
        async with ml.load(path) as model:
            for _ in range(2):
                x = np.float32([1, 2, 3])
                y, same_x, w = await model.infer(x)
                x[:] = 0
                assert (y.tolist(), same_x.tolist()) == ([1, 2, 3], [1, 2, 3])
                assert w.tolist() == [1, 2]
                y[:] = same_x[:] = w[:] = 9
        gc.collect()
        assert (y == 9).all()  # still there, though the model is gone
        assert (w == 9).all()

    asyncio.run(main())


def test_outputs_of_another_shape_than_the_file_says_are_as_they_are(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("Concat", ["x", "x"], ["y"], axis=0)],
        [tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, ["n"])],
        check=False,
    )

    async def main():
        async with ml.load(path) as model:
            for size in (3, 0, 5):
                x = np.arange(size, dtype=np.float32)
                same(await model.infer(x), np.concatenate([x, x]))
            assert model.stats().failed == 0

    asyncio.run(main())


def test_weights_in_another_file_are_found_beside_it(tmp_path):
    weights = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    path = models.write(
        tmp_path / "m.onnx",
        [node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", FLOAT, ["n", 4])],
        [tensor("y", FLOAT, ["n", 1024])],
        [constant(weights, "w")],
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size == weights.nbytes
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(infer(path, x), x @ weights)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ml.LoadError, match="weights.bin"):
        infer(path, x)


# --- what isn't a tensor ---


def test_maps_and_sequences_come_out_as_dicts_and_lists(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [
            node(
                "ZipMap",
                ["x"],
                ["maps"],
                domain="ai.onnx.ml",
                classlabels_strings=["no", "yes"],
            ),
            node("SequenceConstruct", ["x", "x"], ["twice"]),
        ],
        [tensor("x", FLOAT, ["n", 2])],
        [
            onnx.helper.make_value_info(
                "maps",
                onnx.helper.make_sequence_type_proto(
                    onnx.helper.make_map_type_proto(
                        TYPES.STRING, onnx.helper.make_tensor_type_proto(FLOAT, [])
                    )
                ),
            ),
            onnx.helper.make_tensor_sequence_value_info("twice", FLOAT, ["n", 2]),
        ],
        ml=True,
        check=False,
    )
    x = np.float32([[0.25, 0.75], [1, 0]])
    maps, twice = infer(path, x)
    assert maps == [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}]
    assert len(twice) == 2
    for item in twice:
        same(item, x)


def test_a_sequence_as_input_is_refused_at_load(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("SequenceLength", ["xs"], ["y"])],
        [onnx.helper.make_tensor_sequence_value_info("xs", FLOAT, ["n"])],
        [tensor("y", TYPES.INT64, [])],
    )
    with pytest.raises(ml.LoadError, match="input 'xs' is a sequence; tensors are"):
        infer(path, [])


@pytest.mark.parametrize(
    ("element", "name"), [(TYPES.INT4, "int4"), (TYPES.UINT4, "uint4")]
)
def test_four_bit_numbers_are_refused_at_load(tmp_path, element, name):
    path = models.write(
        tmp_path / "m.onnx",
        [node("DequantizeLinear", ["x", "scale"], ["y"])],
        [tensor("x", element, ["n"])],
        [tensor("y", FLOAT, ["n"])],
        [constant(np.float32(1), "scale")],
        opset=21,
        check=False,
    )
    # Before 1.18 the library itself doesn't know them, nor opset 21.
    message = rf"input 'x' is a tensor\({name}\)|Opset 21 is under development"
    with pytest.raises(ml.LoadError, match=message):
        infer(path, np.ones(2, np.float32))


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_complex_numbers_are_refused_at_load(tmp_path, name):
    path = models.unary(tmp_path / "m.onnx", element=getattr(TYPES, name.upper()))
    with pytest.raises(ml.LoadError, match=rf"m\.onnx.*tensor\({name}\)"):
        infer(path, np.ones((1, 4), name))


# --- errors ---


def test_what_goes_wrong_in_a_run_names_the_node(tmp_path):
    path = models.reshaped(tmp_path / "m.onnx")

    async def main():
        async with ml.load(path) as model:
            x = np.ones(6, np.float32)
            with pytest.raises(ml.BackendError, match="the_reshape"):
                await model.infer(x, np.int64([4, 2]))
            assert (await model.infer(x, np.int64([3, 2]))).shape == (3, 2)

    asyncio.run(main())


def test_entries_and_devices_that_are_not_there_are_load_errors(tmp_path):
    path = models.unary(tmp_path / "m.onnx")

    async def main():
        with pytest.raises(ml.LoadError, match="no entry 'score'.*'main'"):
            await ml.load(path, entry="score")
        for device in ("cuda:0", "xpu"):
            if any(d.device == device and d.available for d in ml.devices()):
                continue
            with pytest.raises(ml.LoadError, match="CPUExecutionProvider"):
                await ml.load(path, device=device)
        async with ml.load(path, entry="main", backend="onnx") as model:
            assert model.stats().backend == "onnxruntime"

    asyncio.run(main())


def test_devices_lists_it():
    found = {d.device: d for d in ml.devices() if d.backend == "onnxruntime"}
    assert found["cpu"].available
    assert found["cpu"].memory > 0
    cuda = found["cuda:0"]  # in the wheel onnxruntime-gpu
    assert cuda.available or "no CUDAExecutionProvider" in cuda.reason


def test_a_model_is_known_by_its_content_whatever_its_name(tmp_path):
    path = models.scale(tmp_path / "model.pt", 3.0)
    x = np.ones((1, 4), np.float32)
    same(infer(path, x), x * 3)


def test_loops_and_branches_give_what_they_should(tmp_path):
    path = models.loop(tmp_path / "loop.onnx", size=4)
    x = np.random.default_rng(0).random((2, 4), np.float32)
    for times in (0, 1, 3):
        expected = x
        for _ in range(times):
            expected = np.tanh(expected)
        got = infer(path, x, np.int64([times, times]))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    branches = {
        f"{which}_branch": onnx.helper.make_graph(
            [node(op, ["x"], [which])], which, [], [tensor(which, FLOAT, ["n"])]
        )
        for which, op in [("then", "Identity"), ("else", "Neg")]
    }
    path = models.write(
        tmp_path / "if.onnx",
        [node("If", ["c"], ["y"], **branches)],
        [tensor("c", TYPES.BOOL, []), tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, ["n"])],
    )
    x = x[0].copy()
    same(infer(path, True, x), x)
    same(infer(path, np.array(False), x), -x)


def test_a_fixed_batch_axis_with_batching_is_a_load_error(tmp_path):
    path = models.unary(tmp_path / "m.onnx", shape=[1, 4])

    async def main():
        with pytest.raises(ml.LoadError, match="axis 0 of input 'x'.*fixed at 1"):
            await ml.load(path, batching=ml.Batching())

    asyncio.run(main())


# --- stopping ---


async def started(model):
    """Until a run has begun."""
    while model.stats().running == 0:
        await asyncio.sleep(0)


def test_cancelling_and_deadlines_really_stop_a_run(run, tmp_path):
    path = models.loop(tmp_path / "m.onnx")
    x, n = np.ones((1, 96), np.float32), np.int64([2**60])  # for years

    async def main():
        async with ml.load(path) as model:
            future = model.infer(x, n)
            await started(model)
            future.cancel()
            # It runs only once the other has ended.
            await model.infer(x, np.int64([1]))
            with pytest.raises(ml.DeadlineExceeded):
                await model.infer(x, n, timeout=0.01)
            await model.infer(x, np.int64([1]))
            stats = model.stats()
            assert (stats.completed, stats.failed) == (2, 0)
            assert (stats.cancelled, stats.expired) == (1, 1)
            assert model.health().failing == 0

    run(main)


def test_a_batch_that_somebody_still_wants_is_not_stopped(run, tmp_path):
    path = models.loop(tmp_path / "m.onnx")
    x, n = np.ones((1, 96), np.float32), np.int64([2**60])

    async def main():
        batching = ml.Batching(max_rows=2, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            wanted, given_up = model.infer(x, n), model.infer(x, n)
            await started(model)
            given_up.cancel()
            await asyncio.sleep(0.05)
            assert model.stats().running == 1  # for the other's sake
            wanted.cancel()
            third, fourth = (model.infer(x, np.int64([k])) for k in (1, 2))
            await asyncio.gather(third, fourth)
            assert model.stats().failed == 0

    run(main)


def test_a_loop_that_is_gone_stops_its_runs(tmp_path):
    path = models.loop(tmp_path / "m.onnx")
    x, n = np.ones((1, 96), np.float32), np.int64([2**60])
    model = None

    async def begin():
        nonlocal model
        model = await ml.load(path)
        future = model.infer(x, n)
        await started(model)
        del future

    async def end():
        await model.infer(x, np.int64([1]))
        await model.close()

    asyncio.run(begin())
    gc.collect()
    asyncio.run(end())


# --- threads and sessions ---


@pytest.mark.parametrize("threads", [1, 2])
def test_instances_serve_side_by_side(tmp_path, threads):
    path = models.scale(tmp_path / "m.onnx", 2.0)

    async def main():
        async with ml.load(path, instances=3, threads=threads) as model:
            inputs = [np.full((1, 4), i, np.float32) for i in range(300)]
            results = await asyncio.gather(*map(model.infer, inputs))
            for x, y in zip(inputs, results, strict=True):
                same(y, x * 2)

    asyncio.run(main())


def test_instances_of_a_large_model_share_its_weights(tmp_path):
    weights = np.ones((4096, 4096), np.float32)  # 64 MiB
    path = models.write(
        tmp_path / "m.onnx",
        [node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", FLOAT, ["n", 4096])],
        [tensor("y", FLOAT, ["n", 4096])],
        [constant(weights, "w")],
    )

    def resident():
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096

    async def main():
        async with ml.load(path, instances=1) as model:
            x = np.ones((1, 4096), np.float32)
            await model.infer(x)
            one = resident()
            async with ml.load(path, instances=4) as several:
                await asyncio.gather(*(several.infer(x) for _ in range(32)))
                return (resident() - one) / weights.nbytes

    # One session's, packed or not, and what making it took; four would be more.
    assert asyncio.run(main()) < 3.5


def test_state_of_a_session_travels_through_inputs_and_outputs(tmp_path):
    path = models.write(
        tmp_path / "m.onnx",
        [node("Add", ["x", "total"], ["sum"]), node("Identity", ["sum"], ["next"])],
        [tensor("x", FLOAT, ["n", 1]), tensor("total", FLOAT, ["n", 1])],
        [tensor("sum", FLOAT, ["n", 1]), tensor("next", FLOAT, ["n", 1])],
    )

    async def main():
        async with ml.load(path, batching=ml.Batching()) as model:
            zero = np.zeros((1, 1), np.float32)
            sessions = [model.session(total=zero) for _ in range(4)]
            for step in range(1, 6):
                sums = await asyncio.gather(
                    *(s.infer(np.float32([[k]])) for k, s in enumerate(sessions))
                )
                assert [y.item() for y in sums] == [step * k for k in range(4)]

    asyncio.run(main())
