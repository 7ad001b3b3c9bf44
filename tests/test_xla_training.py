"""Training steps as bundles with state: bit-equal to JAX, and the state's ways."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from xla_programs import (
    FEATURES,
    adam_state,
    adam_step,
    endless,
    init_layers,
    jax,
    jnp,
    without_asan,
)

import pyasyncml as ml
from pyasyncml import export

pytestmark = pytest.mark.xla


@pytest.fixture(scope="module")
def state():
    return adam_state(init_layers(0, FEATURES, 32, 4))


def batches(count):
    generator = np.random.default_rng(1)
    for _ in range(count):
        y = generator.integers(0, 4, 8).astype(np.int32)
        x = generator.normal(size=(8, FEATURES)).astype(np.float32)
        x[np.arange(8), y] += 3
        yield x, y, 1e-2 * generator.random()


@pytest.fixture(scope="module")
def path(tmp_path_factory, state):
    path = str(tmp_path_factory.mktemp("xla") / "step")
    export.jax(adam_step, next(batches(1)), path, None, state=state)
    return path


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b), strict=True)


def test_500_steps_of_adam_are_bit_equal_to_jax(path, state):
    async def main():
        async with ml.load(path, entry="train_step", device="xla:0") as model:
            assert model.signature.stateful
            losses = [(await model.infer(*batch))["loss"] for batch in batches(500)]
            return losses, await model.infer()  # without inputs: the state

    losses, trained = asyncio.run(main())
    step = jax.jit(adam_step)
    expected = []
    for batch in batches(500):
        state, values = step(state, *batch)
        expected.append(values["loss"])
    np.testing.assert_array_equal(losses, expected)
    assert losses[-1] < losses[0] / 2
    assert_same(trained, state)


def test_a_warm_up_trains_nothing(path, state):
    async def main():
        async with ml.load(path, inputs=next(batches(1))) as model:
            return await model.infer()

    assert_same(asyncio.run(main()), state)


def test_each_instance_begins_with_the_bundles_state(path, state):
    async def trained(model):
        for batch in batches(3):
            await model.infer(*batch)
        return await model.infer()

    async def main():
        async with ml.load(path, device="xla:0") as one:
            first = await trained(one)
            async with ml.load(path, device="xla:1") as two:
                return first, await two.infer(), await trained(two)

    first, fresh, second = asyncio.run(main())
    assert_same(fresh, state)
    assert_same(first, second)


def test_refused_inputs_leave_the_state_alone(path, state):
    x, y, rate = next(batches(1))

    async def main():
        async with ml.load(path) as model:
            with pytest.raises(ml.InputError, match="input 'y': is missing"):
                await model.infer(x)
            with pytest.raises(ml.InputError, match="expected shape"):
                model.infer(x[:3], y, rate)
            with pytest.raises(
                ml.InputError, match="expected dtype float32, got a bool"
            ):
                await model.infer(x, y, rate=True)
            return await model.infer()

    assert_same(asyncio.run(main()), state)


@without_asan
def test_a_step_that_fails_in_the_device_loses_the_state_and_says_so(tmp_path):
    path = tmp_path / "step"
    one = np.float32(1)
    export.jax(lambda s, x: (s + 1, endless(x)), one, path, None, state=one)

    async def main():
        async with ml.load(path) as model:
            assert await model.infer() == 1
            with pytest.raises(ml.OutOfMemory, match="Out of memory"):
                await model.infer(one)
            for inputs in ((one,), ()):
                with pytest.raises(ml.BackendError, match="state was lost"):
                    await model.infer(*inputs)
            await model.reload(path)
            return await model.infer()

    assert asyncio.run(main()) == 1


@without_asan
def test_memory_that_runs_out_without_a_state_harms_nothing(tmp_path):
    path = tmp_path / "endless"
    one = np.float32(1)
    export.jax(endless, one, path, None)

    async def main():
        async with ml.load(path) as model:
            for _ in range(3):
                with pytest.raises(ml.OutOfMemory, match="Out of memory"):
                    await model.infer(one)
            return model.stats().failed

    assert asyncio.run(main()) == 3


def test_steps_of_a_state_are_never_batched(path):
    async def main():
        with pytest.raises(ml.LoadError, match="state"):
            await ml.load(path, batching=ml.Batching(max_rows=4))

    asyncio.run(main())


def test_several_instances_of_a_state_warn(path):
    async def main():
        with pytest.warns(RuntimeWarning, match="keeps state"):
            async with ml.load(path, device=["xla:0", "xla:1"]):
                pass

    asyncio.run(main())


def test_weights_beside_a_state_stay_as_they_are(tmp_path):
    def step(frozen, counted, x):
        return {"n": counted["n"] + 1}, (frozen["w"] * x, counted["n"])

    frozen = {"w": jnp.full(3, 2.0), "unused": jnp.ones(5)}
    path = tmp_path / "step"
    x = np.ones(3, np.float32)
    export.jax(
        step, x, path, None, weights=frozen, state={"n": jnp.zeros((), jnp.int32)}
    )

    async def main():
        async with ml.load(path) as model:
            for n in range(3):
                y, before = await model.infer(x)
                np.testing.assert_array_equal(y, 2 * x)
                assert before == n
            return await model.infer()

    assert asyncio.run(main()) == {"n": 3}
