"""Live callables and torch modules, run in Python on the workers."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import sys
import threading
import types

import numpy as np
import pytest

import pyasyncml as ml

needs_torch = [
    pytest.mark.torch,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="torch is not installed"
    ),
]


def marked(test):
    for mark in needs_torch:
        test = mark(test)
    return test


# --- any callable ---


def test_callable_is_a_model_that_takes_any_objects(run):
    async def main():
        async with ml.load(lambda *args, **kwargs: (args, kwargs)) as model:
            thing = object()
            assert await model.infer() == ((), {})
            args, kwargs = await model.infer(thing, 1, x=thing)
            assert args == (thing, 1)
            assert kwargs == {"x": thing}
            assert model.name == "<lambda>"
            assert model.stats().backend == "python"
            assert model.health().ok

    run(main)


def test_awaiting_a_load_gives_the_model(run):
    async def main():
        model = await ml.load(divmod, name="division")
        assert model.name == "division"
        assert await model.infer(7, 2) == (3, 1)
        await model.close()

    run(main)


def test_two_instances_of_a_callable_run_at_once(run):
    async def main():
        barrier = threading.Barrier(2)
        async with ml.load(barrier.wait, instances=2, name="meet") as model:
            outcomes = await asyncio.gather(*(model.infer() for _ in range(10)))
            assert sorted(outcomes) == [0] * 5 + [1] * 5

    run(main)


def test_one_instance_of_a_callable_never_runs_twice_at_once(run):
    async def main():
        inside = []

        def enter(n):
            inside.append(n)
            assert len(inside) == 1
            return inside.pop()

        async with ml.load(enter) as model:
            numbers = range(500)
            assert await asyncio.gather(*map(model.infer, numbers)) == [*numbers]

    run(main)


def test_every_instance_is_warmed_up_with_the_example(run):
    async def main():
        seen = []

        def record(x, y):
            seen.append((threading.get_ident(), x, y))

        async with ml.load(record, inputs=(1, 2), instances=2) as model:
            threads = {ident for ident, x, y in seen}
            assert len(threads) == 2
            assert {(x, y) for ident, x, y in seen} == {(1, 2)}
            warm = len(seen)
            await model.infer(3, 4)
            assert len(seen) == warm + 1
        seen.clear()
        async with ml.load(record, inputs=(1, 2), warmup=False):
            assert seen == []

    run(main)


def test_warm_up_that_fails_fails_the_load_with_its_reason(run):
    async def main():
        def picky(x):
            raise ValueError(f"no {x} please")

        with pytest.raises(ml.LoadError, match="ValueError: no 1 please"):
            await ml.load(picky, inputs=1, instances=2)

    run(main)


def test_exception_of_a_live_callable_arrives_as_it_is(run):
    async def main():
        async with ml.load(lambda x: 1 / x) as model:
            with pytest.raises(ZeroDivisionError):
                await model.infer(0)
            assert await model.infer(2) == 0.5
            stats = model.stats()
            assert (stats.completed, stats.failed) == (1, 1)

    run(main)


def test_live_callable_has_timeouts_priorities_and_a_bound(run):
    async def main():
        begun, go_on = threading.Event(), threading.Event()
        order = []

        def work(n):
            begun.set()
            go_on.wait()
            order.append(n)

        queue = ml.Queue(max_rows=3, when_full="reject")
        async with ml.load(work, queue=queue) as model:
            first = model.infer(0)
            await ml.call(begun.wait)
            late = model.infer(1, timeout=0.01)
            futures = [model.infer(2), model.infer(3, priority=1)]
            with pytest.raises(ml.QueueFull):
                await model.infer(4)
            with pytest.raises(ml.DeadlineExceeded):
                await late
            go_on.set()
            await asyncio.gather(first, *futures)
        assert order == [0, 3, 2]

    run(main)


def test_live_callable_sees_the_context_of_the_call(run):
    variable = contextvars.ContextVar("variable", default=None)

    async def main():
        async with ml.load(variable.get, name="get") as model:
            variable.set("caller")
            assert await model.infer() == "caller"

    run(main)


def test_method_is_chosen_by_entry(run):
    class Pair:
        def __call__(self):
            return "call"

        def other(self):
            return "other"

    async def main():
        async with ml.load(Pair()) as model:
            assert await model.infer() == "call"
            assert model.name == "Pair"
        async with ml.load(Pair(), entry="other") as model:
            assert await model.infer() == "other"

    run(main)


def test_closed_live_model_refuses(run):
    async def main():
        async with ml.load(int) as model:
            pass
        with pytest.raises(ml.ModelClosed, match="model 'int' is closed"):
            model.infer()

    run(main)


# --- torch modules ---


def test_packages_that_another_thread_is_importing_are_no_obstacle(run, monkeypatch):
    class Module:
        def __call__(self, x):
            return x

    tensorflow = types.ModuleType("tensorflow")
    tensorflow.Module = Module  # and neither its Tensor nor its Variable yet
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "keras", types.ModuleType("keras"))

    async def main():
        async with ml.load(Module()) as model:
            assert await model.infer(3) == 3

    run(main)


@marked
def test_module_gives_torch_for_torch_and_numpy_for_numpy(run):
    import torch

    module = torch.nn.Linear(4, 2)
    x = torch.randn(3, 4)
    with torch.inference_mode():
        expected = module(x)

    async def main():
        async with ml.load(module, inputs=x, instances=2, backend="python") as model:
            assert model.name == "Linear"
            y = await model.infer(x)
            assert type(y) is torch.Tensor
            assert torch.equal(y, expected)
            y = await model.infer(x.numpy())
            assert type(y) is np.ndarray
            assert np.array_equal(y, expected.numpy())

    run(main)


@marked
def test_module_runs_in_inference_mode_and_in_the_mode_it_is_in(run):
    import torch

    class Module(torch.nn.Module):
        def forward(self, x):
            return x, torch.is_inference_mode_enabled(), self.training

    module = Module().eval()

    async def main():
        async with ml.load(module) as model:
            x = torch.ones(2, requires_grad=True)
            _, inference, training = await model.infer(x)
            assert (inference, training) == (True, False)
            module.train()
            assert (await model.infer(x))[2] is True
            assert not torch.is_inference_mode_enabled()

    run(main)


@marked
def test_module_takes_and_gives_structures_and_names(run):
    import torch

    class Module(torch.nn.Module):
        def forward(self, pair, *, scale):
            a, b = pair["a"], pair["b"]
            return {"sum": (a + b) * scale, "shapes": [tuple(a.shape), None, "text"]}

    a, b = np.arange(3.0), np.ones(3)

    async def main():
        async with ml.load(Module()) as model:
            y = await model.infer({"a": a, "b": b}, scale=2.0)
            assert np.array_equal(y["sum"], (a + b) * 2)
            assert y["shapes"] == [(3,), None, "text"]

    run(main)


@marked
def test_weights_changed_in_place_are_seen(run):
    import torch

    module = torch.nn.Linear(2, 1, bias=False)

    async def main():
        async with ml.load(module, inputs=torch.zeros(1, 2), backend="python") as model:
            with torch.no_grad():
                module.weight.fill_(3.0)
            assert (await model.infer(torch.ones(1, 2))).item() == 6.0

    run(main)


@marked
def test_error_in_a_module_arrives_as_torch_raised_it(run):
    import torch

    async def main():
        async with ml.load(torch.nn.Linear(4, 2)) as model:
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                await model.infer(torch.zeros(1, 3))
            assert (await model.infer(torch.zeros(1, 4))).shape == (1, 2)

    run(main)


@marked
def test_live_module_on_a_device_is_refused_with_what_helps(run):
    import torch

    async def main():
        with pytest.raises(ml.LoadError, match=r"module\.to\(device\)"):
            await ml.load(torch.nn.Linear(1, 1), device="cuda:0")

    run(main)
