"""Bundles of JAX functions, run by an XLA plugin: equal to JAX, in any structure, on
several devices, and what they say of inputs that don't fit."""

from __future__ import annotations

import asyncio
import ctypes
import os

import numpy as np
import pytest
from xla_programs import FEATURES, init_layers, jax, jnp, mlp

import pyasyncml as ml
from pyasyncml import export

pytestmark = pytest.mark.xla


@pytest.fixture
def run():
    """One kind of loop: the others are no matter of a backend's."""
    return lambda main: asyncio.run(main())


@pytest.fixture(scope="module")
def layers():
    return init_layers(0, FEATURES, 32, 4)


@pytest.fixture(scope="module")
def mlp_path(tmp_path_factory, layers):
    path = str(tmp_path_factory.mktemp("xla") / "mlp")  # known by content, not name
    example = jax.ShapeDtypeStruct((1, FEATURES), jnp.float32)
    export.jax(mlp, example, path, (1, 4, 8), weights=layers)
    return path


def rows(count, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(dtype)


def serve(run, path, body, **options):
    async def main():
        async with ml.load(path, **{"device": "xla:0", **options}) as model:
            return await body(model)

    return run(main)


def served(run, fn, inputs, tmp_path, *, call=None, batch_sizes=None):
    """What the exported function gives for the inputs, or for others."""
    path = str(tmp_path / "bundle")
    export.jax(fn, inputs, path, batch_sizes)

    async def body(model):
        return await model.infer(*(inputs if call is None else call))

    return serve(run, path, body)


def assert_same(ours, theirs):
    """Bit for bit, with the structure."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, np.asarray(b))


# --- rows and buckets ---


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 30])
def test_any_number_of_rows_is_served_by_programs_of_fixed_sizes(
    run, mlp_path, layers, count
):
    x = rows(count)

    async def body(model):
        return await model.infer(x)

    y = serve(run, mlp_path, body)
    assert y.shape == (count, 4)
    np.testing.assert_allclose(y, mlp(layers, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_rows_that_fill_a_bucket_are_bit_equal_to_jax(run, mlp_path, layers, count):
    x = rows(count)

    async def body(model):
        return await model.infer(x)

    assert_same(serve(run, mlp_path, body), jax.jit(mlp)(layers, x))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[1:], id="not aligned"),
        pytest.param(lambda x: x[::2], id="every other row"),
        pytest.param(lambda x: np.asfortranarray(x), id="columns first"),
        pytest.param(lambda x: x[::-1, ::-1], id="backwards"),
        pytest.param(lambda x: np.broadcast_to(x[0], (5, FEATURES)), id="broadcast"),
    ],
)
def test_arrays_that_lie_anyhow_are_read_right(run, mlp_path, layers, change):
    x = change(rows(9))

    async def body(model):
        return await model.infer(x)

    y = serve(run, mlp_path, body)
    np.testing.assert_allclose(y, mlp(layers, x), rtol=1e-5, atol=1e-6)


def test_many_requests_share_runs_and_each_gets_its_own_rows(run, mlp_path, layers):
    xs = [rows(1 + n % 3, seed=n) for n in range(60)]

    async def body(model):
        ys = await asyncio.gather(*map(model.infer, xs))
        return ys, model.stats()

    ys, stats = serve(run, mlp_path, body, batching=ml.Batching(max_rows=8))
    assert stats.runs < len(xs)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y, mlp(layers, x), rtol=1e-5, atol=1e-6)


def test_outputs_outlive_the_model(run, tmp_path):
    def named(x):
        return {"double": 2 * x}

    path = str(tmp_path / "bundle")
    export.jax(named, np.zeros((1, 3), np.float32), path, (1,))
    x = np.ones((1, 3), np.float32)
    futures = []

    async def main():
        async with ml.load(path) as model:  # the CPU's plugin: "cpu" is its device 0
            futures.append(model.infer(x))
            await asyncio.wait(futures)
        # Converted now, with the program gone.
        return futures[0].result()

    assert_same(run(main), {"double": 2 * x})


# --- structures, dtypes, numbers ---


def test_structures_come_in_and_go_out_as_they_are(run, tmp_path):
    def fn(pair, options):
        (a, b), c = pair, options["nested"][0]["deep"]
        return {"sum": a + b + c, "parts": [a, (b, None), {"c": c, "b": b}]}

    def array(fill):
        return np.full((2, 3), fill, np.float32)

    inputs = (
        (array(1), array(2)),
        {"nested": [{"deep": array(4)}], "unused": array(8)},
    )
    ours = served(run, fn, inputs, tmp_path)
    assert_same(ours, fn(*inputs))
    assert ours["parts"][1][1] is None


def test_dicts_are_matched_by_key_whatever_their_order(run, tmp_path):
    def fn(named):
        return named["a"] - named["b"]

    a, b = np.full(3, 5, np.float32), np.full(3, 2, np.float32)
    given = ({"b": b, "a": a},)
    ours = served(run, fn, ({"a": a, "b": b},), tmp_path, call=given)
    np.testing.assert_array_equal(ours, a - b)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16"]
    + ["float32", "complex64"],
)
def test_every_dtype_goes_through_unchanged(run, tmp_path, dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    assert_same(served(run, lambda x: x[::-1], (x,), tmp_path), x[::-1])


def test_numbers_are_taken_for_arrays_of_rank_0(run, tmp_path):
    def fn(x, scale, shift, positive):
        return jnp.where(positive, x * scale + shift, -x)

    x = np.arange(3, dtype=np.float32)
    example = (x, np.float32(0), np.int32(0), np.bool_(False))
    ours = served(run, fn, example, tmp_path, call=(x, 0.5, -7, True))
    np.testing.assert_array_equal(ours, x * np.float32(0.5) - 7)


def test_rank_0_and_empty_arrays_are_outputs_too(run, tmp_path):
    def fn(x):
        return x.sum(), x[:0]

    x = np.arange(4, dtype=np.float32)
    assert_same(served(run, fn, (x,), tmp_path), (np.float32(6).reshape(()), x[:0]))


def test_outputs_that_are_inputs_are_copies(run, tmp_path):
    x = np.arange(64, dtype=np.float32)
    first, second = served(run, lambda x: (x, x), (x,), tmp_path)
    assert_same((first, second), (x, x))
    assert not np.shares_memory(first, x)
    assert not np.shares_memory(first, second)


def test_inputs_that_the_program_does_not_need_are_checked_all_the_same(run, tmp_path):
    def fn(x, unused):
        return x + 1

    x = np.zeros(2, np.float32)
    np.testing.assert_array_equal(served(run, fn, (x, x), tmp_path), x + 1)
    with pytest.raises(ml.InputError, match=r"'unused': expected shape \[2\]"):
        served(run, fn, (x, x), tmp_path, call=(x, np.zeros(3, np.float32)))


@pytest.mark.torch
def test_torch_comes_back_where_torch_was_given(run, mlp_path, layers):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rows(4))

    async def body(model):
        return await model.infer(x)

    y = serve(run, mlp_path, body)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), jax.jit(mlp)(layers, x.numpy()))


# --- what doesn't fit ---


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (rows(2, dtype=np.float64), "expected dtype float32, got float64"),
        (rows(2)[:, :3], r"expected shape \[\?, 16\], got \[2, 3\]"),
        (rows(2)[0], r"expected shape \[\?, 16\], got \[16\]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_at_the_call(run, mlp_path, x, said):
    async def body(model):
        with pytest.raises(ml.InputError, match=said):
            model.infer(x)

    serve(run, mlp_path, body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {"a": a}, "input 'named': expected 2 items, got 1"),
        (lambda a: {"a": a, "c": a}, "input 'named': has no key 'b'"),
        (lambda a: {"a": a, "b": a[:1]}, r"'named'\['b'\]: expected shape \[2\]"),
        (
            lambda a: {"a": a, "b": [a]},
            r"'named'\['b'\]: expected an array, got a list",
        ),
        (lambda a: {"a": a, "b": a.astype("i4")}, "expected dtype float32, got int32"),
    ],
)
def test_a_structure_that_does_not_fit_says_where(run, tmp_path, change, said):
    a = np.ones(2, np.float32)
    with pytest.raises(ml.InputError, match=said):
        served(
            run,
            lambda named: named["a"] + named["b"],
            ({"a": a, "b": a},),
            tmp_path,
            call=(change(a),),
        )


@pytest.mark.parametrize(
    ("number", "said"),
    [(0.5, "expected an int, got a float"), (1 << 40, "doesn't fit int32")],
)
def test_a_number_that_does_not_fit_its_dtype_is_refused(run, tmp_path, number, said):
    x = np.int32(1)
    with pytest.raises(ml.InputError, match=said):
        served(run, lambda n: n + 1, (x,), tmp_path, call=(number,))


def test_inputs_of_unequal_rows_are_refused(run, tmp_path):
    def fn(x, y):
        return x + y

    x = np.ones((2, 3), np.float32)
    with pytest.raises(ml.InputError, match="has 1 rows, another input has 2"):
        served(run, fn, (x, x), tmp_path, call=(x, x[:1]), batch_sizes=(4,))


def test_a_model_goes_on_after_refusals(run, tmp_path):
    def fn(named):
        return named["a"] * 2

    a = np.ones(2, np.float32)
    path = str(tmp_path / "bundle")
    export.jax(fn, {"a": a}, path, None)

    async def body(model):
        wrong = [model.infer({"b": a}) for _ in range(20)]
        right = [model.infer({"a": a}) for _ in range(20)]
        outcomes = await asyncio.gather(*wrong, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ml.InputError}
        return await asyncio.gather(*right)

    np.testing.assert_array_equal(serve(run, path, body), np.full((20, 2), 2))


# --- runs in flight ---


def slow(x):
    """A few tens of milliseconds."""

    def turn(_, a):
        return jnp.tanh(a @ a * 0.01)

    return jax.lax.fori_loop(0, 40, turn, jnp.full((300, 300), x)).sum()


def test_several_runs_are_in_flight_and_close_waits_for_them(run, tmp_path):
    path = str(tmp_path / "slow")
    export.jax(slow, (jax.ShapeDtypeStruct((), jnp.float32),), path, None)

    async def body(model):
        await model.infer(0.5)
        waiting = []
        futures = [model.infer(n / 20) for n in range(20)]
        while not futures[0].done():
            waiting.append(model.stats().waiting)
            await asyncio.sleep(0)
        closing = model.close(drain=False)
        found = await asyncio.gather(*futures, return_exceptions=True)
        await closing
        return waiting, found

    waiting, found = serve(run, path, body)
    # Eight were given to the device before anybody heard of the first's end.
    assert min(waiting) <= 12
    served = [y for y in found if not isinstance(y, ml.ModelClosed)]
    assert 8 <= len(served) < 20
    fn = jax.jit(slow)
    for n, y in enumerate(served):
        np.testing.assert_array_equal(y, fn(np.float32(n / 20)))


def test_runs_in_flight_keep_what_they_read_and_write_apart(run, mlp_path, layers):
    """Padded, in several parts, strided, and numbers of rows that no program has."""
    rng = np.random.default_rng(0)
    xs = []
    for n in range(300):
        x = rows(1 + n % 21, seed=n)
        xs.append(x if n % 3 else np.asfortranarray(x))

    async def body(model):
        futures = []
        for x in xs:
            futures.append(model.infer(x))
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        return await asyncio.gather(*futures)

    fn = jax.jit(mlp)
    for x, y in zip(xs, serve(run, mlp_path, body), strict=True):
        np.testing.assert_allclose(y, fn(layers, x), rtol=1e-5, atol=1e-6)


# --- devices ---


def test_four_devices_serve_one_queue_all_of_them(run, mlp_path, layers):
    devices = [f"xla:{n}" for n in range(4)]
    xs = [rows(1, seed=n) for n in range(200)]
    wanted = [np.asarray(jax.jit(mlp)(layers, x)) for x in xs]

    async def body(model):
        for _ in range(100):  # which one takes a request is theirs to settle
            for y, right in zip(
                await asyncio.gather(*map(model.infer, xs)), wanted, strict=True
            ):
                np.testing.assert_array_equal(y, right)
            if all(instance.requests for instance in model.stats().instances):
                break
        return model.stats().instances

    instances = serve(run, mlp_path, body, device=devices)
    assert [instance.device for instance in instances] == devices
    served = [instance.requests for instance in instances]
    assert all(served), served


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("xla:4", r"'xla:4': there are 4 \(cpu: xla:0 to xla:3\)"),
        ("cuda:0", "runs on 'cpu' or 'xla:0'"),
    ],
)
def test_a_device_that_is_not_there_is_named(run, mlp_path, device, said):
    async def main():
        with pytest.raises(ml.LoadError, match=said):
            await ml.load(mlp_path, device=device)

    run(main)


def test_devices_lists_those_of_the_plugin():
    found = [device for device in ml.devices() if device.backend == "xla"]
    assert [device.device for device in found] == [f"xla:{n}" for n in range(4)]
    assert all(device.available for device in found)
    # The CPU's plugin doesn't tell what its devices have: they share the host's.
    assert {device.memory for device in found} == {
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    }


def test_the_signature_says_names_dtypes_and_shapes(run, mlp_path):
    async def body(model):
        return model.signature

    signature = serve(run, mlp_path, body)
    assert signature.entry == "forward"
    assert not signature.stateful
    (x,) = signature.inputs
    assert (x.name, x.dtype, x.shape) == ("x", "float32", (None, FEATURES))
    (y,) = signature.outputs
    assert (y.dtype, y.shape) == ("float32", (None, 4))


def test_reload_changes_the_weights(run, mlp_path, layers, tmp_path):
    other = str(tmp_path / "other")
    negated = jax.tree.map(jnp.negative, layers)
    example = jax.ShapeDtypeStruct((1, FEATURES), jnp.float32)
    export.jax(mlp, example, other, (1, 4, 8), weights=negated)
    x = rows(4)

    async def body(model):
        before = await model.infer(x)
        await model.reload(other)
        return before, await model.infer(x)

    before, after = serve(run, mlp_path, body)
    assert_same(before, jax.jit(mlp)(layers, x))
    assert_same(after, jax.jit(mlp)(negated, x))


def test_runs_while_the_gil_is_held_elsewhere(run, mlp_path):
    """Workers and XLA's threads never wait for it: devices go on being fed, far beyond
    what was in flight before."""
    x, total = rows(8), 4000
    hold = ctypes.PyDLL(None).usleep  # a C function called with the GIL held

    async def body(model):
        futures = [model.infer(x) for _ in range(total)]
        await asyncio.sleep(0)  # the loop's thread gives what it was told to submit
        before = model.stats().completed
        hold(300_000)
        served = model.stats().completed - before
        await asyncio.gather(*futures)
        return before, served

    before, served = serve(run, mlp_path, body, queue=ml.Queue(max_rows=total))
    # Eight were in flight; a busy machine may have had time for all of them before.
    assert served > 100 or before + served == total, (before, served)
