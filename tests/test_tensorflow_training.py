"""SavedModels that train: what `export.tensorflow` writes, driven natively."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import saved_models
from saved_models import ROWS, STEPS

import pyasyncml as ml
from pyasyncml import call, export
from pyasyncml.backends.tensorflow import SharedProgram

saved_models.require_tensorflow()

X, Y = saved_models.batches()


@pytest.fixture(scope="module")
def models(saved_model_folder):
    return saved_model_folder


@pytest.fixture(scope="module")
def eager(models):
    return np.load(models / "training.npz")


def batch(step):
    rows = slice(step * ROWS, (step + 1) * ROWS)
    return X[rows], Y[rows]


async def train(model, steps):
    return [await model.infer(*batch(step)) for step in steps]


def test_140_steps_of_adam_are_eager_tensorflows_bit_for_bit(models, eager):
    async def main():
        shared = SharedProgram(models / "training")
        async with (
            ml.load(shared, entry="train_step") as step,
            ml.load(shared, entry="predict") as predict,
            ml.load(shared, entry="weights") as weights,
        ):
            assert [spec.name for spec in step.signature.inputs] == ["x", "y"]
            assert step.signature.stateful
            assert not predict.signature.stateful
            losses = np.array(await train(step, range(STEPS)))
            assert losses.tobytes() == eager["losses"].tobytes()
            scores = await predict.infer(X[:ROWS])
            np.testing.assert_allclose(scores, eager["scores"], rtol=1e-5, atol=1e-6)
            found = await weights.infer()
            assert set(found) == set(eager.files) - {"losses", "scores"}
            for name, value in found.items():
                assert value.tobytes() == eager[name].tobytes(), name

    asyncio.run(main())


def test_steps_are_served_beside_requests_that_see_their_weights(models):
    async def main():
        shared = SharedProgram(models / "training")
        async with (
            ml.load(shared, entry="train_step") as step,
            ml.load(shared, entry="predict", instances=2) as predict,
        ):
            before = await predict.infer(X[:ROWS])
            going = asyncio.create_task(train(step, range(60)))
            seen = {before.tobytes()}
            while not going.done():
                scores = await asyncio.gather(
                    *(predict.infer(X[:ROWS]) for _ in range(4))
                )
                assert all(np.isfinite(score).all() for score in scores)
                seen.update(score.tobytes() for score in scores)
            losses = await going
            assert losses[-1] < losses[0]
            assert len(seen) > 1

    asyncio.run(main())


def test_a_checkpoint_is_tensorflows_and_brings_everything_back(models, tmp_path):
    async def main():
        shared = SharedProgram(models / "training")
        async with ml.load(shared, entry="train_step") as step:
            await train(step, range(10))
            await call(shared.save, tmp_path / "saved")
            expected = await train(step, range(10, 20))
            await call(shared.restore, tmp_path / "saved")
            again = await train(step, range(10, 20))
            assert np.array(again).tobytes() == np.array(expected).tobytes()
        # And into a program that has never run.
        other = SharedProgram(models / "training")
        await call(other.restore, tmp_path / "saved")
        async with ml.load(other, entry="train_step") as step:
            again = await train(step, range(10, 20))
            assert np.array(again).tobytes() == np.array(expected).tobytes()
        with pytest.raises(ml.BackendError, match="nowhere"):
            await call(other.restore, tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(ml.BackendError, match="file/x"):
            await call(other.save, tmp_path / "file" / "x")

    asyncio.run(main())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import tensorflow as tf
                reader = tf.train.load_checkpoint({str(tmp_path / "saved")!r})
                for name, shape in sorted(reader.get_variable_to_shape_map().items()):
                    print(name, shape)
                """
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    kernel = re.compile(r"weights/.*kernel/.ATTRIBUTES/VARIABLE_VALUE \[64, 32\]")
    assert sum(bool(kernel.fullmatch(line)) for line in lines) == 1, lines
    assert any("adam" in line and "velocity" in line for line in lines)
    assert any("iteration" in line and line.endswith("[]") for line in lines)


async def answers(model):
    """The different ones to one request, once all devices have given some."""
    found, before = set(), model.stats().instances
    while any(
        now.runs == then.runs
        for now, then in zip(model.stats().instances, before, strict=True)
    ):
        scores = await asyncio.gather(*(model.infer(X[:ROWS]) for _ in range(20)))
        found.update(score.tobytes() for score in scores)
    return found


def test_each_device_has_variables_of_its_own_and_restore_reaches_all(models, tmp_path):
    async def main():
        shared = SharedProgram(models / "training")
        async with (
            ml.load(shared, entry="train_step", device="cpu:1") as step,
            ml.load(shared, entry="predict", device=["cpu:0", "cpu:1"]) as predict,
        ):
            (fresh,) = await answers(predict)
            await train(step, range(5))
            assert len(await answers(predict)) == 2
            await call(shared.save, tmp_path / "untrained", device="cpu:0")
            await call(shared.save, tmp_path / "trained")  # cpu:1 came first
            await call(shared.restore, tmp_path / "trained")
            (trained,) = await answers(predict)
            assert trained != fresh
            await call(shared.restore, tmp_path / "untrained")
            assert await answers(predict) == {fresh}
            with pytest.raises(ml.LoadError, match=r"no model of this .* on cuda:0"):
                await call(shared.save, tmp_path / "none", device="cuda:0")

    asyncio.run(main())


def test_a_program_goes_with_the_last_that_holds_it(models):
    async def main():
        shared = SharedProgram(models / "training")
        first = await ml.load(shared, entry="train_step")
        async with ml.load(shared, entry="predict") as predict:
            await train(first, range(3))
            await first.close()
            del first
            trained = await predict.infer(X[:ROWS])
            async with ml.load(shared, entry="predict") as other:
                assert (await other.infer(X[:ROWS])).tobytes() == trained.tobytes()
        del shared
        async with ml.load(models / "training", entry="predict") as fresh:
            assert (await fresh.infer(X[:ROWS])).tobytes() != trained.tobytes()

    asyncio.run(main())


def test_a_module_of_its_own_making_trains_too(models):
    async def main():
        async with ml.load(models / "line", entry="train_step") as step:
            points = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
            heights = points @ np.array([[2.0], [-1.0]], np.float32) + 3
            assert [spec.name for spec in step.signature.inputs] == [
                "points",
                "heights",
            ]
            losses = [float(await step.infer(points, heights)) for _ in range(400)]
            assert losses == sorted(losses, reverse=True)
            assert losses[-1] < losses[0] / 20

    asyncio.run(main())


@pytest.mark.parametrize("damaged", ["index", "data"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    models, eager, tmp_path, damaged
):
    async def main():
        shared = SharedProgram(models / "training")
        async with ml.load(shared, entry="train_step") as step:
            await call(shared.save, tmp_path / "saved")
            (path,) = tmp_path.glob(f"saved.{damaged}*")
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            losses = await train(step, range(1))
            with pytest.raises(ml.BackendError):
                await call(shared.restore, tmp_path / "saved")
            losses += await train(step, range(1, 4))
            assert np.array(losses).tobytes() == eager["losses"][:4].tobytes()

    asyncio.run(main())


def test_saving_a_device_without_a_model_makes_no_session(models, tmp_path):
    shutil.copytree(models / "training", tmp_path / "copy")
    # Which a session would read.
    (tmp_path / "copy" / "variables" / "variables.index").write_bytes(b"damaged")
    shared = SharedProgram(tmp_path / "copy")
    with pytest.raises(ml.LoadError, match="no model of this program runs on cuda:0"):
        shared.save(tmp_path / "saved", device="cuda:0")


def test_saving_needs_a_savedmodel(tmp_path):
    with pytest.raises(ml.LoadError, match="No such file"):
        SharedProgram(tmp_path / "none").save(tmp_path / "x")


def test_export_says_what_is_wrong_with_its_arguments():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import numpy as np, pytest, tensorflow as tf, keras
                import pyasyncml as ml
                from pyasyncml import export

                x = np.ones((2, 3), np.float32)
                model = keras.Sequential([keras.layers.Dense(1)])
                with pytest.raises(TypeError, match="model: .* got int"):
                    export.tensorflow(5, "m", inputs=x)
                with pytest.raises(ValueError, match="both, or neither"):
                    export.tensorflow(model, "m", inputs=x, loss="mse")
                with pytest.raises(ValueError, match="and, last, the target"):
                    export.tensorflow(model, "m", inputs=x, loss="mse", optimizer="sgd")
                with pytest.raises(TypeError, match="optimizer: .* got int"):
                    export.tensorflow(
                        model, "m", inputs=(x, x), loss="mse", optimizer=5
                    )
                with pytest.raises(ml.LoadError, match="can't be exported: .*nope"):
                    def nope(x):
                        raise RuntimeError("nope")
                    nope.variables = ()
                    export.tensorflow(nope, "m", inputs=x)
                """
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert callable(export.tensorflow)


def test_a_fit_is_eager_tensorflow_bit_for_bit_and_its_weights_are_published(
    models, eager
):
    async def main():
        async with (
            await ml.Trainer.load(models / "training") as trainer,
            ml.load(models / "training", entry="predict") as predict,
        ):
            before = await predict.infer(X[:ROWS])
            history = await trainer.fit((X, Y), batch_size=ROWS, shuffle=False)
            losses = np.array(history.losses, dtype=np.float32)
            assert losses.tobytes() == eager["losses"].astype(np.float32).tobytes()
            assert (await predict.infer(X[:ROWS])).tobytes() == before.tobytes()
            await predict.update_weights(trainer)
            scores = await predict.infer(X[:ROWS])
            np.testing.assert_allclose(scores, eager["scores"], rtol=1e-5, atol=1e-6)
            step = await trainer.step(X[:ROWS], Y[:ROWS])
            assert step.keys() == {"loss"}
            with pytest.raises(ml.Error, match="evaluate"):
                trainer.fit((X, Y), batch_size=ROWS, validation=(X, Y))
            with pytest.raises(ml.Error, match="state: .* save"):
                await trainer.state()

    asyncio.run(main())


def test_a_trainers_checkpoints_bring_it_back_and_the_last_is_tensorflows(
    models, tmp_path
):
    async def main():
        async with await ml.Trainer.load(models / "training", seed=1) as trainer:
            whole = (await trainer.fit((X, Y), epochs=30, batch_size=ROWS)).losses
        async with await ml.Trainer.load(models / "training", seed=1) as trainer:
            run = trainer.fit((X, Y), epochs=30, batch_size=ROWS)
            async for progress in run:
                await trainer.save(tmp_path / "saved")
                if progress.step > 20:
                    break
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            await trainer.save(tmp_path / "saved")
            losses = run._losses
        async with await ml.Trainer.load(models / "training", seed=2) as trainer:
            await trainer.restore(tmp_path / "saved")
            run = trainer.fit((X, Y), epochs=30, batch_size=ROWS)
            assert losses + (await run).losses == whole
            with pytest.raises(ml.LoadError, match="No such file"):
                await trainer.restore(tmp_path / "nowhere")

    asyncio.run(main())
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert len([name for name in names if name.endswith(".index")]) == 1
    assert "checkpoint" in names


def test_what_a_trainer_has_saved_tensorflow_reads_value_by_value(models, tmp_path):
    async def main():
        async with (
            await ml.Trainer.load(models / "training") as trainer,
            ml.load(models / "training", entry="weights") as weights,
        ):
            await trainer.fit((X, Y), batch_size=ROWS)
            await trainer.save(tmp_path / "saved")
            await weights.update_weights(trainer)
            return await weights.infer()

    expected = asyncio.run(main())
    script = f"""
        import numpy as np, tensorflow as tf
        reader = tf.train.load_checkpoint({str(tmp_path / "saved")!r})
        found = {{
            name: reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if not name.startswith("_CHECKPOINTABLE")
        }}
        np.savez({str(tmp_path / "found.npz")!r}, **found)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert len(expected) == 4  # two layers' kernels and biases
    for name, value in expected.items():
        # A checkpoint is a tree, in whose names a slash is ".S".
        (key,) = (
            key
            for key in found.files
            if key == f"weights/{name.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
        )
        assert found[key].tobytes() == value.tobytes()
        assert value.any()
    (iteration,) = (key for key in found.files if "iteration" in key)
    assert found[iteration] == STEPS


def test_a_trainers_weights_go_only_into_its_own_program(models, tmp_path):
    async def main():
        copied = tmp_path / "copy"
        shutil.copytree(models / "training", copied)
        async with (
            await ml.Trainer.load(models / "training") as trainer,
            ml.load(models / "line", entry="train_step") as other,
            ml.load(copied, entry="predict") as same,
        ):
            await trainer.step(X[:ROWS], Y[:ROWS])
            before = other.signature
            with pytest.raises(ml.LoadError, match="another program"):
                await other.update_weights(trainer)
            assert other.signature == before
            await other.infer(np.zeros((1, 2), "f4"), np.zeros((1, 1), "f4"))
            await same.update_weights(trainer)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["short", "foreign"])
def test_a_checkpoint_that_is_not_this_trainers_is_refused(models, tmp_path, how):
    async def main():
        source = "line" if how == "foreign" else "training"
        async with await ml.Trainer.load(models / source) as trainer:
            await trainer.save(tmp_path / "saved")
        if how == "short":
            (path,) = (tmp_path / "saved").glob("*.data-*")
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        async with await ml.Trainer.load(models / "training") as trainer:
            with pytest.raises(ml.LoadError, match="damaged, or of another program"):
                await trainer.restore(tmp_path / "saved")
            assert np.isfinite((await trainer.step(X[:ROWS], Y[:ROWS]))["loss"])

    asyncio.run(main())


def test_a_file_is_no_savedmodel(tmp_path):
    path = tmp_path / "two.onnx"
    path.write_bytes(b"anything")
    with pytest.raises(ml.LoadError, match="is a file; a SavedModel is a folder"):
        asyncio.run(ml.Trainer.load(path))


def test_a_trainers_weights_come_from_its_device_and_reach_all_of_a_model(models):
    async def main():
        shared = SharedProgram(models / "training")
        devices = ["cpu:0", "cpu:1"]
        async with (
            ml.load(models / "training", entry="predict", device=devices) as served,
            ml.load(shared, entry="predict", device="cpu:0") as beside,
            await ml.Trainer.load(shared, device="cpu:1") as trainer,
        ):
            (fresh,) = await answers(served)
            await trainer.step(X[:ROWS], Y[:ROWS])
            await served.update_weights(trainer)
            (trained,) = await answers(served)
            assert trained != fresh
            assert await answers(beside) == {fresh}
        with pytest.raises(ValueError, match=r"device: .* one device, got 2"):
            await ml.Trainer.load(shared, device=devices)
        with pytest.raises(ml.LoadError, match=r"'cuda:0': .* finds no GPU"):
            await ml.Trainer.load(shared, device="cuda:0")

    asyncio.run(main())


def test_what_trains_nothing_is_no_trainer(models):
    async def main():
        with pytest.raises(ml.LoadError, match="changes no variable"):
            await ml.Trainer.load(models / "training", entry="predict")
        with pytest.raises(ml.LoadError, match="no such|nonsense"):
            await ml.Trainer.load(models / "training", entry="nonsense")

    asyncio.run(main())


def test_every_answer_under_load_is_of_one_published_moment(models):
    """32 clients, while a fit that publishes is paused and goes on, and is published by
    hand: each gets what the weights of some one step give."""
    rows, epochs = X[:4], 10

    async def every_moment():
        """What the model gives before the training and after each step."""
        shared = SharedProgram(models / "training")
        async with (
            ml.load(shared, entry="train_step") as step,
            ml.load(shared, entry="predict") as predict,
        ):
            yield await predict.infer(rows)
            for number in [*range(STEPS)] * epochs:
                await step.infer(*batch(number))
                yield await predict.infer(rows)

    async def client(model, moments, seen):
        """Until it is cancelled."""
        while True:
            scores = await model.infer(rows)
            assert scores.tobytes() in moments  # or a mix
            seen.add(moments[scores.tobytes()])

    async def main():
        found = [scores.tobytes() async for scores in every_moment()]
        moments = {scores: step for step, scores in enumerate(found)}
        assert len(moments) == len(found)
        seen = set()
        async with (
            await ml.Trainer.load(models / "training") as trainer,
            ml.load(models / "training", entry="predict", instances=2) as model,
        ):
            clients = [
                asyncio.create_task(client(model, moments, seen)) for _ in range(32)
            ]
            run = trainer.fit(
                (X, Y),
                epochs=epochs,
                batch_size=ROWS,
                shuffle=False,
                publish=model,
                publish_every=20,
            )
            pauses = 0
            async for progress in run:
                if progress.step > 300 * pauses and pauses < 4:
                    pauses += 1
                    run.pause()
                    with contextlib.suppress(ml.ReloadUnderWay):
                        await model.update_weights(trainer)
                    scores = await model.infer(rows)
                    assert moments[scores.tobytes()] < epochs * STEPS
                    run.resume()
            await run
            assert pauses == 4
            scores = await model.infer(rows)
            assert moments[scores.tobytes()] == epochs * STEPS
            assert not any(task.done() for task in clients)
            for task in clients:
                task.cancel()
            await asyncio.wait(clients)
            assert model.stats().failed == 0
        assert len(seen) > 3

    asyncio.run(main())
