"""TorchScript models that serve batches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import FOR_EVER, outcomes

import pyasyncml as ml

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

LENGTH = {"length": {0: 1}}


def archive(tmp_path: Path, module: Any) -> str:
    """A TorchScript file of the module: its path."""
    path = str(tmp_path / "model.pt")
    torch.jit.script(module.eval()).save(path)
    return path


class Named(torch.nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ids * mask


def test_errors_about_batched_inputs_name_them(run, tmp_path):
    path = str(tmp_path / "named.pt")
    torch.jit.script(Named().eval()).save(path)
    pad = ml.Pad({"length": {"ids": 1, "mask": 1}})

    async def main():
        async with ml.load(path, batching=ml.Batching(pad=pad)) as model:
            with pytest.raises(ml.InputError, match="'mask' has 3 rows, input 'ids' h"):
                model.infer(np.ones((2, 5)), np.ones((3, 5)))
            with pytest.raises(ml.InputError, match="'mask' has length 4 along axis 1"):
                model.infer(np.ones((2, 5)), mask=np.ones((2, 4)))
            with pytest.raises(ml.InputError, match="of input 'ids', which has"):
                model.infer(np.ones(2), np.ones((2, 4)))
        with pytest.raises(ml.InputError, match="'mask' has 3 rows"):
            model.infer(np.ones((2, 5)), np.ones((3, 5)))  # the program is gone

    run(main)


def test_names_of_inputs_that_do_not_exist_are_a_load_error(run, tmp_path):
    class Sum(torch.nn.Module):
        def forward(self, ids, other):
            return ids + other

    path = archive(tmp_path, Sum())
    ids = {"length": {"idz": 1}}

    async def main():
        for batching, message in [
            (ml.Batching(pad=ml.Pad(ids)), r"no input named 'idz'.*\(.*ids, other\)"),
            (ml.Batching(axes={"state": 1}), "no input named 'state'"),
            (ml.Batching(output_axes={"logits": 1}), "no output named 'logits'"),
            (ml.Batching(axes={2: 1}), "there is no input 2; the model takes 2"),
            (ml.Batching(pad=ml.Pad(LENGTH, mask="mask")), "no input named 'mask'"),
            (ml.Batching(pad=ml.Pad(LENGTH, fill={"x": 1})), "no input named 'x'"),
        ]:
            with pytest.raises(ml.LoadError, match=message):
                await ml.load(path, batching=batching)

    run(main)


def test_batched_model_gives_the_numbers_of_one_by_one(run, tmp_path):
    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(16, 64)
            self.other = torch.nn.Linear(64, 5)

        def forward(self, x, scale: float):
            y = self.other(torch.relu(self.one(x)))
            return y * scale, {"top": y.argmax(1)}

    torch.manual_seed(3)
    path = archive(tmp_path, Classifier())
    inputs = [torch.randn(1 + n % 3, 16) for n in range(16)]
    rows = sum(len(x) for x in inputs)

    async def main():
        async with ml.load(path) as model:
            alone = [await model.infer(x, 2.0) for x in inputs]
        # The delay makes it wait for all of them, whatever comes between.
        batching = ml.Batching(max_rows=rows, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            together = await asyncio.gather(*(model.infer(x, 2.0) for x in inputs))
            assert model.stats().runs == 1
            assert model.stats().rows == rows
        for (y, top), (z, also) in zip(alone, together, strict=True):
            # Kernels for other sizes add up in another order: a few last bits.
            torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
            assert torch.equal(top["top"], also["top"])

    run(main)


def test_model_whose_outputs_do_not_follow_the_batch_is_told_so_and_goes_on(
    run, tmp_path
):
    class Sometimes(torch.nn.Module):
        def forward(self, x):
            return x.sum(0) if x.size(1) == 1 else x

    path = archive(tmp_path, Sometimes())

    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            for error in await outcomes(model.infer(torch.ones(1, 1)) for _ in "four"):
                assert isinstance(error, ml.BackendError)
                assert "output 0 of the model has shape [1], expected 4 rows" in str(
                    error
                )
                assert "outputs follow the batch axis of its inputs" in str(error)
            assert model.stats().runs == 1  # no other run would help
            assert model.health().ok
            assert (await model.infer(torch.ones(4, 2))).shape == (4, 2)

    run(main)


def test_inputs_with_names_have_their_own_batch_axes(run, tmp_path):
    class Step(torch.nn.Module):
        def forward(self, x, state):
            return x + state.sum(0), state + 1

    path = archive(tmp_path, Step())

    async def main():
        batching = ml.Batching(
            max_rows=6, max_delay=FOR_EVER, axes={"state": 1}, output_axes={1: 1}
        )
        async with ml.load(path, batching=batching) as model:
            requests = [(torch.rand(n, 3), torch.rand(2, n, 3)) for n in (1, 2, 3)]
            futures = [model.infer(state=state, x=x) for x, state in requests]
            for (x, state), (y, new) in zip(
                requests, await asyncio.gather(*futures), strict=True
            ):
                torch.testing.assert_close(y, x + state.sum(0))
                assert torch.equal(new, state + 1)
            assert model.stats().runs == 1

    run(main)


def test_mask_of_a_named_input_is_made_and_outputs_are_unpadded(run, tmp_path):
    class Centre(torch.nn.Module):
        def forward(self, ids, mask):
            real = mask.sum(1, keepdim=True)
            return ids - (ids * mask).sum(1, keepdim=True) / real

    path = archive(tmp_path, Centre())
    pad = ml.Pad(
        {"length": {"ids": 1}},
        outputs={"length": {0: 1}},
        fill={"ids": 1000},
        mask="mask",
        mask_dtype="float32",
    )

    async def main():
        batching = ml.Batching(max_rows=4, max_delay=FOR_EVER, pad=pad)
        async with ml.load(path, batching=batching) as model:
            inputs = [torch.rand(1, n) for n in (7, 8, 6, 7)]
            for x, y in zip(
                inputs, await asyncio.gather(*map(model.infer, inputs)), strict=True
            ):
                torch.testing.assert_close(y, x - x.mean(1, keepdim=True))
            assert model.stats().runs == 1
            assert model.stats().padding_waste == pytest.approx(4 / 32)

    run(main)


class Refusing(torch.nn.Module):
    """Can't run in one shape."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length = rows, length

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == self.rows and x.shape[1] == self.length:
            raise ValueError("not this shape")
        return (x * mask).sum(1)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.parametrize("length", [4, 16])
def test_every_bucket_and_size_is_run_before_the_model_is_ready(tmp_path, rows, length):
    batching = ml.Batching(
        max_rows=5, pad=ml.Pad(LENGTH, mask=1), buckets={"length": (4, 16)}
    )
    x = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int64)

    async def main():
        path = archive(tmp_path, Refusing(rows, length))
        with pytest.raises(ml.LoadError, match="warm-up.*not this shape"):
            await ml.load(path, inputs=x, batching=batching)
        async with ml.load(
            archive(tmp_path, Refusing(3, 3)), inputs=x, instances=2, batching=batching
        ) as model:
            assert float((await model.infer(x[0]))[0]) == 3

    asyncio.run(main())
