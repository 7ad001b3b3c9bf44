"""Tiny models run in the caller, where that was allowed."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


async def learn(model, *inputs):
    """Runs until the workers have shown what such a request takes."""
    while not model.stats().inlined:
        await model.infer(*inputs)


def test_request_to_an_idle_tiny_model_is_done_at_the_call(run):
    async def main():
        async with await echo(inline_below=0.5) as model:
            first = model.infer(1.0)
            assert not first.done()  # nothing is known yet
            await first
            await learn(model, 1.0)
            inlined = model.stats().inlined
            future = model.infer(2.0)
            assert future.done()
            assert future.result() == 2.0 == await future
            stats = model.stats()
            assert stats.inlined == inlined + 1
            assert stats.submitted == stats.completed
            # A run each, wherever it was.
            assert (stats.runs, stats.rows, stats.requests) == 3 * (stats.submitted,)
            assert sum(stats.releases.values()) == stats.submitted - stats.inlined
            assert 0 < stats.inlined_seconds < 0.5 * stats.inlined

    run(main)


def test_nothing_runs_inline_unless_asked(run):
    async def main():
        async with await echo() as model:
            for n in range(20):
                assert await model.infer(n) == n
            assert model.stats().inlined == 0

    run(main)


def test_what_takes_longer_than_the_bound_goes_to_the_workers(run):
    async def main():
        async with await echo(inline_below=1e-4, delay=1e-3) as model:
            for n in range(10):
                assert await model.infer(n) == n
            assert model.stats().inlined == 0

    run(main)


def test_other_kinds_of_input_have_to_be_learned_anew(run):
    async def main():
        async with await echo(inline_below=0.5) as model:
            await learn(model, np.zeros(3))
            future = model.infer(np.zeros(4))
            assert not future.done()
            await future

    run(main)


def test_busy_model_is_left_alone(run):
    async def main():
        async with await echo(inline_below=0.5) as model:
            await learn(model, 1.0)
            model.hold()
            runs = model.runs
            text = model.infer("text")  # not learned: to the worker, which is held
            await model.begun(runs + 1)
            future = model.infer(2.0)
            assert not future.done()
            model.release()
            assert await future == 2.0
            assert await text == "text"

    run(main)


def test_error_of_an_inline_run_comes_through_the_future(run):
    async def main():
        async with await echo(inline_below=0.5) as model:
            await learn(model, 1.0)
            model.fail(1, "as scripted")
            future = model.infer(2.0)
            assert future.done()
            with pytest.raises(ml.BackendError, match="as scripted"):
                await future
            assert await model.infer(3.0) == 3.0
            assert model.stats().failed == 1

    run(main)


def test_timeout_of_zero_and_closing_hold_inline_too(run):
    async def main():
        async with await echo(inline_below=0.5) as model:
            await learn(model, 1.0)
            assert isinstance(
                model.infer(2.0, timeout=0).exception(), ml.DeadlineExceeded
            )
            assert model.infer(2.0, timeout=60).done()
        with pytest.raises(ml.ModelClosed):
            model.infer(3.0)

    run(main)


def test_batching_model_checks_rows_and_serves_one_inline(run):
    async def main():
        async with await echo(
            inline_below=0.5, batching=ml.Batching(max_rows=4)
        ) as model:
            await learn(model, np.ones((2, 3)))
            future = model.infer(np.ones((2, 3)))
            assert future.done()
            assert (await future).shape == (2, 3)
            assert (await model.infer(np.ones((9, 3)))).shape == (9, 3)

    run(main)


@pytest.mark.parametrize("bound", [-1, 2, "1", None])
def test_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="inline_below: expected seconds"):
        ml.load("model.pt", inline_below=bound)


@pytest.mark.torch
def test_torch_model_runs_inline_and_leaves_the_callers_threads_alone(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "tiny.pt"
    module = torch.nn.Linear(4, 2).eval()
    torch.jit.script(module).save(str(path))
    x = torch.ones(1, 4)

    async def main():
        async with ml.load(str(path), inline_below=0.5, inputs=x) as model:
            await learn(model, x)
            threads = torch.get_num_threads()
            future = model.infer(x)
            assert future.done()
            assert torch.get_num_threads() == threads
            with torch.inference_mode():
                assert torch.equal(await future, module(x))

    asyncio.run(main())


def test_callable_is_never_run_inline():
    with pytest.raises(ValueError, match="inline_below: a live module or callable"):
        ml.load(abs, inline_below=0.5)


@pytest.mark.torch
def test_requests_that_need_padding_go_to_the_workers(tmp_path):
    torch = pytest.importorskip("torch")

    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (x * mask).sum(1)

    path = tmp_path / "masked.pt"
    torch.jit.script(Masked()).save(str(path))
    x = torch.ones(1, 3)

    async def main():
        batching = ml.Batching(pad=ml.Pad({"length": {"x": 1}}, mask="mask"))
        async with ml.load(str(path), inline_below=0.5, batching=batching) as model:
            for _ in range(10):
                assert (await model.infer(x)).tolist() == [3]
            assert model.stats().inlined == 0

    asyncio.run(main())
