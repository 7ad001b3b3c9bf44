"""SavedModels through `pyasyncml.load`: what goes in, comes out, and is refused."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess

import numpy as np
import pytest
import saved_models
from saved_models import DTYPES

import pyasyncml as ml

saved_models.require_tensorflow()


@pytest.fixture(scope="module")
def models(saved_model_folder):
    return saved_model_folder


def infer(path, *inputs, entry=None, **named):
    """One request to a model that is loaded for it."""

    async def main():
        async with ml.load(path, entry=entry) as model:
            return await model.infer(*inputs, **named)

    return asyncio.run(main())


def same(got, expected):
    expected = np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def aligned(shape, dtype=np.float32, offset=0):
    """An array that begins `offset` bytes after a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(dtype).reshape(shape)


# --- types and shapes ---


@pytest.mark.parametrize("name", DTYPES)
def test_every_numeric_type_goes_in_and_comes_out(models, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    x = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    for array in (x, x.T, x[:, ::2], x[:0], x[0, 1:2].reshape(())):
        result = infer(models / "dtypes", array, entry=name)
        same(result["same"], array)
        same(result["twice"], np.stack([array, array]))


@pytest.mark.torch
def test_torch_tensors_in_mean_torch_tensors_out(models):
    torch = pytest.importorskip("torch")
    x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    result = infer(models / "dtypes", x, entry="bfloat16")
    assert torch.equal(result["same"], x)
    assert torch.equal(result["twice"], torch.stack([x, x]))


def test_several_inputs_come_by_name_or_in_the_order_that_their_author_wrote(models):
    zeta, alpha = np.ones((2, 4), np.float32), np.full((2, 4), 3, np.float32)
    by_position = infer(models / "several", zeta, alpha)
    by_name = infer(models / "several", alpha=alpha, zeta=zeta)
    for result in (by_position, by_name):
        assert list(result) == ["a", "b"]  # a signature's names, several: a dict
        same(result["b"], zeta - alpha)
        same(result["a"], zeta @ np.arange(12, dtype=np.float32).reshape(4, 3))


def test_without_an_author_the_order_is_that_of_the_names(models):
    assert infer(models / "several", 1.0, 5.0, entry="by_name") == 4.0  # a, b
    assert infer(models / "several", b=1.0, a=5.0, entry="by_name") == -4.0


def test_numbers_are_scalars_of_the_type_that_the_signature_says(models):
    x = np.ones((1, 4), np.float32)
    same(infer(models / "several", x, 3, entry="scale"), x * 3)
    same(infer(models / "several", x, 0.5, entry="scale"), x / 2)
    same(infer(models / "several", 7, True, entry="count"), np.int8(7))
    same(infer(models / "several", -128, False, entry="count"), np.int8(-128))
    with pytest.raises(ml.InputError, match="'n': .* DT_INT8"):
        infer(models / "several", 128, True, entry="count")
    with pytest.raises(TypeError, match=r"'n': expected .*int, got float"):
        infer(models / "several", 1.5, True, entry="count")


def test_numbers_are_scalars_where_any_shape_goes(models):
    for number in (5, 2**63 - 1, 2**63, 2**64 - 1):
        result = infer(models / "dtypes", number, entry="uint64")
        same(result["same"], np.array(number, np.uint64))
    for number in (3, -1.5):
        for name in ("complex64", "complex128"):
            result = infer(models / "dtypes", number, entry=name)
            same(result["twice"], np.array([number, number], name))
    with pytest.raises(ml.InputError, match="doesn't fit in 64 bits"):
        infer(models / "dtypes", 2**64, entry="uint64")
    with pytest.raises(ml.InputError, match="'x': the number is none .* DT_UINT64"):
        infer(models / "dtypes", -1, entry="uint64")
    with pytest.raises(TypeError, match="'x': expected tensor, got float"):
        infer(models / "dtypes", 1.5, entry="float8_e5m2")


@pytest.mark.parametrize(
    ("entry", "name"), [("half", "float16"), ("brain", "bfloat16")]
)
def test_a_float_becomes_the_nearest_of_a_short_type(models, entry, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    limits = ml_dtypes.finfo(dtype)
    edges = [limits.max, limits.tiny, limits.smallest_subnormal]
    values = [
        *(0.0, -0.0, 1.0, -1 / 3, 1e30, 65519.0, 65520.0, 1e-7, 3e-8, 1e-40, np.inf),
        *(float(edge) * factor for edge in edges for factor in (1, 0.5, 0.75, 1.25)),
        *np.random.default_rng(1).normal(size=50),
    ]

    async def main():
        async with ml.load(models / "several", entry=entry) as model:
            return [await model.infer(float(value)) for value in values]

    for value, result in zip(values, asyncio.run(main()), strict=True):
        with np.errstate(over="ignore"):
            expected = np.float64(value).astype(dtype)
        assert result.tobytes() == expected.tobytes(), value


def test_a_shape_or_type_that_doesnt_fit_is_refused_at_the_call(models):
    async def main():
        async with ml.load(models / "several") as model:
            x = np.ones((2, 4), np.float32)
            with pytest.raises(
                ml.InputError, match=r"'zeta': expected shape \[\?, 4\]"
            ):
                model.infer(x[:, :3], x)
            with pytest.raises(ml.InputError, match="'alpha': expected dtype float32"):
                model.infer(x, x.astype(np.float64))
            with pytest.raises(ml.InputError, match="'alpha' is missing"):
                model.infer(x)
            with pytest.raises(ml.InputError, match="no input named 'beta'"):
                model.infer(x, x, beta=x)
            # And what TensorFlow alone can tell, in the run; the model goes on.
            with pytest.raises(ml.BackendError, match="Incompatible shapes"):
                await model.infer(x, np.ones((3, 4), np.float32))
            assert (await model.infer(x, x))["b"].sum() == 0

    asyncio.run(main())


def test_an_error_of_the_run_says_what_tensorflow_says_in_one_line(models):
    with pytest.raises(ml.BackendError, match="not positive") as caught:
        infer(models / "several", np.zeros(2, np.float32), entry="positive")
    assert "\n" not in str(caught.value)
    with pytest.raises(ml.BackendError, match=r"(?i)py_?func"):
        infer(models / "several", np.zeros(2, np.float32), entry="python")


@pytest.mark.parametrize("text", [b"\xff\xfe", "ä" * 1000, "x" + "ä" * 1000])
def test_an_error_that_is_no_utf8_or_is_cut_within_a_letter_is_reported(models, text):
    with pytest.raises(ml.BackendError, match="(?i)could not .*convert") as caught:
        infer(models / "text", text, entry="number")
    assert str(caught.value).encode()
    quoted = "\ufffd\ufffd" if isinstance(text, bytes) else text[:100]
    assert quoted in str(caught.value)


# --- strings ---


def test_strings_go_in_as_they_come_and_come_out_as_bytes(models):
    texts = [["a", "später", ""], ["x" * 1000, "nul\0inside", "日本"]]
    expected = [[t.encode() for t in row] for row in texts]
    for array in (
        np.array(texts, object),
        np.array(expected, object),
        np.array([row[:1] for row in texts]),
        np.array(texts, object).T,
        np.empty((0, 2), object),
        np.array([[b"ab", b""], [b"c", b"\xff"]])[::-1],
        np.array(["später", "b"])[:, None],
        texts,
    ):
        result = infer(models / "text", array, entry="upper")
        want = np.array(array, object)
        assert result["same"].shape == result["length"].shape == want.shape
        flat = [t if isinstance(t, bytes) else t.encode() for t in want.ravel()]
        assert result["same"].ravel().tolist() == flat
        assert result["length"].ravel().tolist() == [len(t) for t in flat]
        if b"\xff" in flat:
            continue
        # TensorFlow's upper() ends at a nul; the string doesn't.
        assert result["upper"].ravel().tolist() == [
            t.split(b"\0")[0].decode().upper().encode() for t in flat
        ]
    assert infer(models / "text", "hey", entry="exclaimed").tolist() == b"hey!"
    assert infer(models / "text", b"\xff", entry="exclaimed").tolist() == b"\xff!"
    with pytest.raises(TypeError, match="'text'"):
        infer(models / "text", 5, entry="exclaimed")


def test_a_lookup_table_is_filled_from_the_assets(models, tmp_path):
    shutil.copytree(models / "text", moved := tmp_path / "elsewhere")
    words = np.array([["gamma", "alpha"], ["?", "beta"]])
    same(infer(moved, words, entry="lookup"), np.array([[2, 0], [3, 1]], np.int64))


def test_strings_are_batched_and_padded(models):
    async def main():
        batching = ml.Batching(max_rows=8, max_delay=0.2)
        async with ml.load(models / "text", entry="upper", batching=batching) as model:
            rows = [np.array([f"row {i}", f"{'r' * 40}{i}"]) for i in range(6)]
            results = await asyncio.gather(*map(model.infer, rows))
            assert model.stats().runs < 6
            for row, result in zip(rows, results, strict=True):
                assert result["upper"].tolist() == [t.upper().encode() for t in row]

    asyncio.run(main())


# --- memory ---


@pytest.mark.parametrize("offset", [0, 4])
def test_an_output_that_is_the_input_is_memory_of_its_own(models, offset):
    x = aligned((4, 3), offset=offset)
    x[:] = 1
    result = infer(models / "several", x, entry="reshaped")
    before = infer(models / "dtypes", x, entry="float32")
    x[:] = 2
    assert result.tolist() == [1.0] * 12
    assert before["same"].sum() == 12


def test_what_a_caller_does_to_an_output_reaches_no_variable_and_no_constant(models):
    async def main(entry):
        async with ml.load(models / "several", entry=entry) as model:
            first = await model.infer()
            expected = first.copy()
            first[:] = -1
            same(await model.infer(), expected)

    asyncio.run(main("variable"))
    asyncio.run(main("constant"))


@pytest.mark.parametrize("offset", [0, 4])
def test_a_variable_that_is_assigned_an_input_keeps_it_when_the_caller_has_gone_on(
    models, offset
):
    from pyasyncml.backends.tensorflow import SharedProgram

    async def main():
        shared = SharedProgram(models / "state")
        async with (
            ml.load(shared, entry="keep") as keep,
            ml.load(shared, entry="kept") as kept,
        ):
            assert keep.signature.stateful
            assert not kept.signature.stateful
            for size in (1, 5, 1000):
                x = aligned((size,), offset=offset)
                x[:] = size
                assert await keep.infer(x) == size * size
                x[:] = -1
                del x
                gc.collect()
                assert (await kept.infer()).tolist() == [float(size)] * size

    asyncio.run(main())


def test_outputs_outlive_their_model(models):
    result = infer(models / "dtypes", np.arange(1000.0), entry="float64")
    gc.collect()
    same(result["twice"], np.stack([np.arange(1000.0)] * 2))


# --- kinds of SavedModels ---


def test_a_model_of_tensorflow_1_runs(models):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    same(infer(models / "tf1", x), x @ np.ones((3, 2), np.float32))


def test_a_keras_export_gives_what_keras_does(models):
    expected = np.load(models / "keras.npz")
    got = infer(models / "keras", expected["pixels"], expected["extra"])
    np.testing.assert_allclose(got, expected["scores"], rtol=1e-6)


def test_state_stays_in_the_model_from_run_to_run(models):
    async def main():
        async with ml.load(models / "state", entry="count") as model:
            assert model.signature.stateful
            counts = await asyncio.gather(*(model.infer(2) for _ in range(50)))
            assert [int(count) for count in counts] == list(range(2, 102, 2))
        with pytest.raises(ml.LoadError, match="state"):
            await ml.load(models / "state", entry="count", batching=ml.Batching())

    asyncio.run(main())


# --- the scheduler ---


def test_requests_share_runs_and_padding_fills_them_up(models):
    async def main():
        batching = ml.Batching(
            max_rows=16,
            max_delay=0.2,
            pad=ml.Pad({"length": {"x": 1}}, mask="mask", mask_dtype="float32"),
        )
        async with ml.load(models / "several", entry="masked", batching=batching) as m:
            rows = [np.full((1, n), n, np.float32) for n in range(1, 9)]
            results = await asyncio.gather(*map(m.infer, rows))
            assert [float(r[0]) for r in results] == [float(n) for n in range(1, 9)]
            assert m.stats().runs < 8

    asyncio.run(main())


def test_instances_run_at_once_on_one_session(models):
    async def main():
        async with ml.load(models / "several", instances=3) as model:
            xs = [np.full((2, 4), i, np.float32) for i in range(200)]
            results = await asyncio.gather(*(model.infer(x, x[::-1]) for x in xs))
            for x, result in zip(xs, results, strict=True):
                same(result["a"], x @ np.arange(12, dtype=np.float32).reshape(4, 3))

    asyncio.run(main())


def test_a_sessions_state_is_the_output_of_the_inputs_name(models):
    async def main():
        batching = ml.Batching(max_rows=8)
        async with ml.load(models / "state", entry="step", batching=batching) as model:
            start = np.zeros((1, 2), np.float32)
            sessions = [model.session(state=start) for _ in range(3)]
            for n in range(1, 6):
                results = await asyncio.gather(
                    *(
                        session.infer(np.full((1, 2), i + n, np.float32))
                        for i, session in enumerate(sessions)
                    )
                )
                for i, result in enumerate(results):
                    state = sum(i + k for k in range(1, n))
                    assert result.tolist() == [[state * 10 + i + n] * 2]
            for session in sessions:
                session.close()
            with pytest.raises(ml.BackendError, match="under the names"):
                await model.session(x=start).infer(state=start)

    asyncio.run(main())


def test_a_model_is_reloaded_while_it_serves(models, tmp_path):
    async def main():
        async with ml.load(models / "several") as model:
            x = np.ones((1, 4), np.float32)
            pending = [model.infer(x, x) for _ in range(20)]
            shutil.copytree(models / "several", tmp_path / "again")
            await model.reload(tmp_path / "again")
            results = await asyncio.gather(*pending, model.infer(x, x))
            assert len({r["a"].tobytes() for r in results}) == 1
            with pytest.raises(ml.LoadError, match="signature"):
                await model.reload(models / "keras")

    asyncio.run(main())


def test_a_closed_model_serves_what_it_has_accepted(models):
    async def main():
        model = await ml.load(models / "several", entry="loop")
        x = np.eye(64, dtype=np.float32)
        futures = [model.infer(x=x, n=200) for _ in range(3)]
        await model.close()
        for result in await asyncio.gather(*futures):
            assert result.shape == (64, 64)

    asyncio.run(main())


# --- loading ---


def test_a_signature_that_isnt_there_is_refused_with_those_that_are(models):
    with pytest.raises(
        ml.LoadError, match=r"'nope'.*brain, by_name, constant, count, grown, half"
    ):
        infer(models / "several", entry="nope")
    with pytest.raises(ml.LoadError, match="'serving_default'.*entry="):
        infer(models / "state")


@pytest.mark.parametrize("name", ["PartitionedCall:0", "serving_default_x:0"])
def test_a_signature_of_what_the_graph_lacks_is_refused_by_the_folders_name(
    models, tmp_path, name
):
    shutil.copytree(models / "twice", damaged := tmp_path / "damaged")
    graph = damaged / "saved_model.pb"
    content = graph.read_bytes()
    graph.write_bytes(content.replace(name.encode(), b"#" + name[1:].encode()))
    with pytest.raises(ml.LoadError, match=f"{damaged}: .*no '#{name[1:]}'"):
        infer(damaged)
    with pytest.raises(ml.LoadError, match=f"{damaged}: .*no signature 'nope'"):
        infer(damaged, entry="nope")


def test_folders_that_are_no_savedmodel_are_told_apart(tmp_path, models):
    with pytest.raises(ml.LoadError, match=r"without a saved_model\.pb"):
        infer(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ml.LoadError, match="empty"):
        infer(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"no protobuf")
    with pytest.raises(ml.LoadError, match="damaged"):
        infer(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(ml.LoadError, match="no graph"):
        infer(tmp_path)
    with pytest.raises(ml.LoadError, match="reads files"):
        asyncio.run(_load(models / "keras", backend="torch"))


async def _load(path, **options):
    return await ml.load(path, **options)


def test_a_folders_checksum_is_that_of_the_list_of_its_files(tmp_path, models):
    shutil.copytree(models / "keras", copy := tmp_path / "model")
    command = "find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(
        command, shell=True, cwd=copy, capture_output=True, text=True, check=True
    )
    digest = done.stdout.split()[0]
    asyncio.run(_closed(copy, sha256=digest))
    (tmp_path / "model.sha256").write_text(f"{digest}  model\n")
    asyncio.run(_closed(copy))
    with open(copy / "variables" / "variables.index", "ab") as file:
        file.write(b"!")
    with pytest.raises(ml.LoadError, match="the folder has"):
        asyncio.run(_closed(copy))


async def _closed(path, **options):
    async with ml.load(path, **options):
        pass


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", ["cpu", "cuda:3"]])
def test_a_gpu_that_isnt_there_is_refused_with_what_is(models, device):
    name = device if isinstance(device, str) else device[-1]
    with pytest.raises(
        ml.LoadError, match=f"'{name}': .* finds no GPU here; it has CPU:0$"
    ):
        asyncio.run(_load(models / "keras", device=device))


def test_a_device_that_no_savedmodel_runs_on_is_refused(models):
    with pytest.raises(ml.LoadError, match="'mps:0': a SavedModel runs on 'cpu' or"):
        asyncio.run(_load(models / "keras", device="mps"))
    with pytest.raises(ValueError, match=r"got 'gpu:0'; there is cpu, cuda"):
        ml.load(models / "keras", device="gpu:0")


def test_threads_are_the_instances_own(models):
    async def main():
        for threads in (2, 1):
            async with ml.load(models / "several", threads=threads) as model:
                x = np.ones((512, 4), np.float32)
                same((await model.infer(x, x))["b"], x - x)

    asyncio.run(main())


def test_the_backend_is_among_the_devices():
    found = {(d.backend, d.device): d for d in ml.devices()}
    assert found["tensorflow", "cpu"].available
