"""Keras models of several kinds, exported: driven natively they train as eager
TensorFlow does, batch by batch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import saved_models

import pyasyncml as ml

saved_models.require_tensorflow()

SCRIPT = Path(__file__).parent / "isolated" / "keras_exports.py"
ROWS = 16


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def trained(folder, name, inputs):
    """Losses, the scores of the first batch before and after, the inputs' names."""

    async def main():
        async with (
            await ml.Trainer.load(folder / name) as trainer,
            ml.load(folder / name, entry="predict") as predict,
        ):
            first = [x[:ROWS] for x in inputs[:-1]]
            before = await predict.infer(*first)
            history = await trainer.fit(inputs, batch_size=ROWS, shuffle=False)
            await predict.update_weights(trainer)
            names = [spec.name for spec in predict.signature.inputs]
            return history.losses, before, await predict.infer(*first), names

    return asyncio.run(main())


def test_batch_norm_dropout_and_a_schedule_in_a_model_nobody_has_called(exports):
    eager = np.load(exports / "unbuilt.npz")
    losses, before, scores, names = trained(
        exports, "unbuilt", (eager["x"], eager["y"])
    )
    assert names == ["x"]
    np.testing.assert_allclose(losses, eager["losses"], rtol=1e-5)
    # With the statistics of the training, and nothing dropped.
    np.testing.assert_allclose(scores, eager["scores"], rtol=1e-4, atol=1e-5)
    assert abs(scores - before).max() > 0.01


def test_inputs_that_are_a_dict_are_a_signatures_by_their_names(exports):
    eager = np.load(exports / "dicts.npz")
    losses, _, scores, names = trained(
        exports, "dicts", (eager["x"], eager["z"], eager["y"])
    )
    assert names == ["a", "b"]
    np.testing.assert_allclose(losses, eager["losses"], rtol=1e-5)
    np.testing.assert_allclose(scores, eager["scores"], rtol=1e-4, atol=1e-5)

    async def main():
        async with ml.load(exports / "dicts") as model:
            a, b = eager["x"][:ROWS], eager["z"][:ROWS]
            by_name = await model.infer(b=b, a=a)
            assert by_name.tobytes() == (await model.infer(a, b)).tobytes()
            assert by_name.tobytes() != (await model.infer(b, a)).tobytes()

    asyncio.run(main())
