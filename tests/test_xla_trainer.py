"""`Trainer.load` of a bundle: fit, checkpoints and publishing, bit-equal to JAX."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_programs import (
    FEATURES,
    adam_state,
    cross_entropy,
    endless,
    init_layers,
    jax,
    jnp,
    mlp,
    without_asan,
)

import pyasyncml as ml
from pyasyncml import export

pytestmark = pytest.mark.xla

ROWS = 8
RATE = 1e-2
LONG = 1000  # epochs: nobody is so late that a run has ended meanwhile


def adam(state, x, y):
    """Adam, Kingma and Ba 2015, algorithm 1, and the accuracy before the step."""
    t = state["t"] + 1
    loss, gradient = jax.value_and_grad(cross_entropy)(state["layers"], x, y)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], gradient)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["v"], gradient)

    def moved(layer, m, v):
        return layer - RATE * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)

    layers = jax.tree.map(moved, state["layers"], m, v)
    accuracy = (mlp(state["layers"], x).argmax(1) == y).mean()
    return (
        {"layers": layers, "m": m, "v": v, "t": t},
        {"accuracy": accuracy, "loss": loss},
    )


def data(count):
    generator = np.random.default_rng(1)
    y = generator.integers(0, 4, count).astype(np.int32)
    x = generator.normal(size=(count, FEATURES)).astype(np.float32)
    x[np.arange(count), y] += 3
    return x, y


X, Y = data(10 * ROWS)


@pytest.fixture(scope="module")
def state():
    return adam_state(init_layers(0, FEATURES, 32, 4))


@pytest.fixture(scope="module")
def path(tmp_path_factory, state):
    path = str(tmp_path_factory.mktemp("xla") / "step")
    export.jax(adam, (X[:ROWS], Y[:ROWS]), path, None, state=state)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory, state):
    """What is served: the layers, under the key that they have in the state."""
    path = str(tmp_path_factory.mktemp("xla") / "net")
    weights = {"layers": state["layers"]}
    export.jax(
        lambda held, x: mlp(held["layers"], x), X[:1], path, (1, 8), weights=weights
    )
    return path


def plain(state, seed, epochs):
    """The same training as a loop over JAX's own step."""
    step = jax.jit(adam)
    losses, accuracies = [], []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(X))
        for rows in order.reshape(-1, ROWS):
            state, values = step(state, X[rows], Y[rows])
            losses.append(float(values["loss"]))
            accuracies.append(float(values["accuracy"]))
    return state, losses, accuracies


@pytest.fixture(scope="module")
def long_run(state):
    state, losses, _ = plain(state, 3, LONG)
    return state, losses


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b), strict=True)


def run(main):
    return asyncio.run(main())


def test_a_fit_is_jaxs_own_loop_bit_for_bit(path, state):
    async def main():
        async with await ml.Trainer.load(path, seed=3, device="xla:1") as trainer:
            history = await trainer.fit((X, Y), epochs=30)
            return history, await trainer.state()

    history, trained = run(main)
    expected, losses, accuracies = plain(state, 3, 30)
    assert history.losses == losses
    assert history.metrics["accuracy"] == accuracies
    assert losses[-1] < losses[0] / 4
    assert_same(trained, expected)


def test_batches_of_an_iterable_and_single_steps_train_the_same(path, state):
    batches = [(X[i : i + ROWS], Y[i : i + ROWS]) for i in range(0, len(X), ROWS)]

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            history = await trainer.fit(batches[:-1])
            last = await trainer.step(*batches[-1])
            return history.losses, last, await trainer.state()

    losses, last, trained = run(main)
    step = jax.jit(adam)
    for i, batch in enumerate(batches):
        state, values = step(state, *batch)
        got = losses[i] if i < len(losses) else last["loss"]
        assert got == float(values["loss"])
    assert last["accuracy"] == float(values["accuracy"])
    assert_same(trained, state)


def test_a_run_is_watched_paused_and_cancelled_between_two_steps(path, long_run):
    async def main():
        async with await ml.Trainer.load(path, seed=3) as trainer:
            run = trainer.fit((X, Y), epochs=LONG)
            async for progress in run:
                assert progress.metrics.keys() == {"accuracy"}
                break
            run.pause()
            paused = (await trainer.state())["t"]
            for _ in range(5):
                await asyncio.sleep(0)
            assert (await trainer.state())["t"] == paused
            run.resume()
            await asyncio.sleep(0)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            steps = int((await trainer.state())["t"])
            assert paused <= steps < run.steps
            return steps, run._losses

    steps, losses = run(main)
    assert len(losses) == steps > 0
    assert losses == long_run[1][:steps]


def test_a_checkpoint_brings_everything_back_bit_by_bit(path, long_run, tmp_path):
    saved = tmp_path / "saved"

    async def main():
        async with await ml.Trainer.load(path, seed=3) as trainer:
            run = trainer.fit((X, Y), epochs=LONG)
            while len(run._losses) < 25:
                await trainer.save(saved)  # holds the run between two steps
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            await trainer.save(saved)
            losses = run._losses
        async with await ml.Trainer.load(path, seed=5) as trainer:
            await trainer.step(X[:ROWS], Y[:ROWS])
            await trainer.restore(saved)
            losses = losses + (await trainer.fit((X, Y), epochs=LONG)).losses
            return losses, await trainer.state()

    losses, trained = run(main)
    expected, wanted = long_run
    assert losses == wanted
    assert_same(trained, expected)


def test_a_killed_process_leaves_a_checkpoint_that_is_gone_on_with(
    path, long_run, tmp_path
):
    """The runtime half: neither process imports JAX."""
    script = Path(__file__).parent / "isolated" / "xla_training.py"
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    command = [sys.executable, script, path, tmp_path, str(LONG)]
    killed = subprocess.run([*command, "killed"], capture_output=True, text=True)
    assert (killed.returncode, killed.stderr) == (-9, "")
    done = subprocess.run([*command, "on"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected, wanted = long_run
    losses = json.loads(done.stdout)
    assert 0 < len(losses) < len(wanted)
    assert losses == wanted[-len(losses) :]
    with np.load(tmp_path / "trained.npz") as trained:
        leaves = [trained[name] for name in trained.files]
    for ours, theirs in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs), strict=True)


def test_a_checkpoint_is_a_file_that_safetensors_reads(path, state, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            await trainer.save(tmp_path / "saved")

    run(main)
    tensors = numpy.load_file(tmp_path / "saved")
    assert len(tensors) == len(jax.tree.leaves(state))
    np.testing.assert_array_equal(
        tensors["state/layers/1/w"], np.asarray(state["layers"][1]["w"])
    )
    assert tensors["state/t"].shape == ()


@pytest.mark.parametrize("how", ["cut", "changed", "foreign", "plain", "none"])
def test_a_checkpoint_that_is_not_this_trainers_is_refused(path, tmp_path, how):
    saved = tmp_path / "saved"

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            await trainer.step(X[:ROWS], Y[:ROWS])
            await trainer.save(saved)
            content = saved.read_bytes()
            match = "damaged"
            if how == "cut":
                saved.write_bytes(content[:-100])
            elif how == "changed":
                saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            elif how == "foreign":
                await save_another(tmp_path, saved)
                match = (
                    r"another step: state/w is only there|float32\[3\] there"
                    "|is only here"
                )
            elif how == "plain":
                saved.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
                match = "no checkpoint"
            else:
                saved.unlink()
                match = "No such file"
            before = await trainer.state()
            with pytest.raises(ml.LoadError, match=match):
                await trainer.restore(saved)
            assert_same(await trainer.state(), before)
            assert (await trainer.step(X[:ROWS], Y[:ROWS]))["loss"] > 0

    run(main)


async def save_another(tmp_path, saved):
    other = tmp_path / "other"
    one = np.ones((2, 3), np.float32)

    def step(state, x):
        return {"w": state["w"] + x.mean(0)}, x.sum()

    await ml.call(lambda: export.jax(step, one, other, None, state={"w": jnp.zeros(3)}))
    async with await ml.Trainer.load(other) as trainer:
        await trainer.save(saved)


def test_weights_are_published_to_a_served_bundle(path, net, state):
    async def main():
        async with (
            await ml.Trainer.load(path, seed=3) as trainer,
            ml.load(net, batching=ml.Batching(max_rows=8)) as model,
        ):
            first = await model.infer(X[:5])
            await trainer.fit((X, Y), epochs=3)
            np.testing.assert_array_equal(await model.infer(X[:5]), first)
            await model.update_weights(trainer)
            second = await model.infer(X[:5])
            await trainer.fit((X, Y), epochs=3, publish=model, publish_every=10)
            return first, second, await model.infer(X[:5])

    served = jax.jit(mlp)
    expected = [plain(state, 3, epochs)[0]["layers"] for epochs in (0, 3, 6)]
    for got, layers in zip(run(main), expected, strict=True):
        # Padded to 8 rows there: other sums in XLA's matrix product.
        np.testing.assert_allclose(got, served(layers, X[:5]), rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_the_steps_are_refused(path, net, state, tmp_path):
    bare, wide, closed = tmp_path / "bare", tmp_path / "wide", tmp_path / "closed"
    export.jax(mlp, X[:1], bare, None, weights=state["layers"])
    wrong = {"layers": init_layers(0, FEATURES, 16, 4)}
    export.jax(lambda held, x: mlp(held["layers"], x), X[:1], wide, None, weights=wrong)
    export.jax(lambda x: 2 * x, X[:1], closed, None)

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            for source, kind, match in (
                (bare, ml.LoadError, "no '0/b', which model 'bare' .* 'layers/0/b'"),
                (
                    wide,
                    ml.LoadError,
                    r"'layers/0/b' is float32\[32\] .* and float32\[16\]",
                ),
                (closed, ml.Error, "has no weights"),
                (path, ml.Error, "a state of its own"),
            ):
                async with ml.load(source) as model:
                    with pytest.raises(kind, match=match):
                        await model.update_weights(trainer)
                    assert model.stats().failed == 0
            async with ml.load(abs, inputs=1) as model:
                with pytest.raises(ml.Error, match="no bundle"):
                    await model.update_weights(trainer)

    run(main)


def test_a_restored_trainer_is_published_too(path, net, tmp_path):
    async def main():
        async with (
            await ml.Trainer.load(path) as trainer,
            ml.load(net) as model,
        ):
            await trainer.fit((X, Y))
            await trainer.save(tmp_path / "saved")
            await model.update_weights(trainer)
            expected = await model.infer(X[:8])
            await trainer.fit((X, Y))
            await model.update_weights(trainer)
            assert (await model.infer(X[:8])).tobytes() != expected.tobytes()
            await trainer.restore(tmp_path / "saved")
            await model.update_weights(trainer)
            np.testing.assert_array_equal(await model.infer(X[:8]), expected)

    run(main)


def test_data_that_the_step_was_not_exported_for_is_refused(path, state):
    async def main():
        async with await ml.Trainer.load(path) as trainer:
            with pytest.raises(ValueError, match="batch_size: .* batches of 8 rows"):
                trainer.fit((X, Y), batch_size=16)
            with pytest.raises(ml.InputError, match="12 rows leave 4 over"):
                trainer.fit((X[:12], Y[:12]))
            with pytest.raises(ml.Error, match="validation: .* can't evaluate"):
                trainer.fit((X, Y), validation=(X, Y))
            with pytest.raises(ml.InputError, match="'x': expected dtype float32"):
                await trainer.fit((X.astype(np.float64), Y))
            with pytest.raises(ml.InputError, match="'y': is missing"):
                await trainer.fit((X,))
            with pytest.raises(ml.InputError, match="'x': expected shape"):
                await trainer.step(X[:3], Y[:3])
            assert_same(await trainer.state(), state)
            await trainer.fit((X, Y), batch_size=ROWS)

    run(main)


def test_what_is_no_training_step_is_no_trainer(path, net, tmp_path):
    nested, many = tmp_path / "nested", tmp_path / "many"
    one = np.ones(2, np.float32)
    export.jax(lambda s, x: (s, (x.sum(), {"a": s})), one, nested, None, state=one[0])
    export.jax(lambda s, x: (s, {"loss": x}), one, many, None, state=one[0])

    async def main():
        for source, options, match in (
            (net, {"entry": "forward"}, "has no state"),
            (path, {"entry": "nonsense"}, "no entry 'nonsense'"),
            (path, {"device": "xla:9"}, "device='xla:9'"),
            (nested, {}, "output 1 of the step is nested"),
            (many, {}, r"output 'loss' of the step is float32\[2\]"),
        ):
            with pytest.raises(ml.LoadError, match=match):
                await ml.Trainer.load(source, **options)
        with pytest.raises(TypeError, match="device: .* one device"):
            await ml.Trainer.load(path, device=["xla:0", "xla:1"])

    run(main)


def test_a_bundle_of_an_earlier_version_says_so(path, tmp_path):
    import zipfile

    old = tmp_path / "old"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(old, "w") as made:
        for name in archive.namelist():
            if name != "held":
                made.writestr(name, archive.read(name))

    async def main():
        async with ml.load(old) as model:
            assert (await model.infer(X[:ROWS], Y[:ROWS]))["loss"] > 0
        with pytest.raises(ml.LoadError, match="export it again"):
            await ml.Trainer.load(old)

    run(main)


@without_asan
def test_a_state_that_a_failed_step_lost_comes_back_by_a_restore(tmp_path):
    path = tmp_path / "step"
    one = np.ones(1, np.float32)
    export.jax(lambda s, x: (s + 1, endless(x[0])), one, path, None, state=one)

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            await trainer.save(tmp_path / "saved")
            with pytest.raises(ml.OutOfMemory):
                await trainer.fit((one,))
            with pytest.raises(ml.BackendError, match="state was lost"):
                await trainer.save(tmp_path / "saved")
            await trainer.restore(tmp_path / "saved")
            return await trainer.state()

    assert run(main) == 1


def test_a_state_that_was_donated_is_freed(tmp_path):
    """600 states of 4 MiB would be 2.3 GiB."""
    path = tmp_path / "step"
    export.jax(
        lambda s, x: (s + x.mean(), s[0]),
        np.ones((1, 1), np.float32),
        path,
        None,
        state=jnp.zeros(1 << 20),
    )
    x = np.ones((300, 1), np.float32)

    async def main():
        async with await ml.Trainer.load(path) as trainer:
            await trainer.fit((x,))
            await trainer.save(tmp_path / "saved")
            await trainer.restore(tmp_path / "saved")
            before = resident()
            await trainer.fit((x,))
            for _ in range(30):
                await trainer.restore(tmp_path / "saved")
            await trainer.fit((x,))
            grown = resident() - before
            assert (await trainer.state())[0] == 600
            return grown

    assert run(main) < 64 << 20


def resident():
    """Bytes of this process's own: pages of mapped files aren't counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")
