"""Python callables and live callables on native workers."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import numpy as np
import pytest

import pyasyncml as ml

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


def test_call_runs_elsewhere_with_arguments_and_context(run):
    def work(a, *, b):
        return a + b, variable.get(), threading.get_ident()

    async def main():
        variable.set("carried")
        total, carried, thread = await ml.call(work, 1, b=2)
        assert (total, carried) == (3, "carried")
        assert thread != threading.get_ident()

    run(main)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exceptions_arrive_with_their_traceback(run, error):
    def fail():
        raise error("inside")

    async def main():
        future = ml.call(fail)
        await asyncio.wait([future])
        assert isinstance(future.exception(), error)
        names = []
        traceback = future.exception().__traceback__
        while traceback is not None:
            names.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        assert "fail" in names

    run(main)


def test_stop_iteration_does_not_end_the_awaiting_coroutine(run):
    def stop():
        raise StopIteration(1)

    async def main():
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await ml.call(stop)
        assert isinstance(caught.value.__cause__, StopIteration)

    run(main)


def test_a_cancelled_call_that_waits_is_never_begun(run):
    gate = threading.Event()
    begun = []

    async def main():
        held = [ml.call(gate.wait) for _ in range(40)]  # more than there are workers
        late = ml.call(begun.append, 1)
        late.cancel()
        gate.set()
        await asyncio.gather(*held)
        gate.clear()
        assert not begun

    run(main)


def test_what_is_not_callable_is_refused(run):
    async def main():
        with pytest.raises(TypeError, match="fn"):
            ml.call(3)
        with pytest.raises(TypeError, match="fn"):
            ml.call()

    run(main)
    with pytest.raises(RuntimeError, match="no running event loop"):
        ml.call(print)


def test_a_live_callable_is_a_model(run):
    async def main():
        async with ml.load(
            lambda x, scale=1: x * scale, instances=2, inputs=1
        ) as model:
            assert await model.infer(21, scale=2) == 42
            x = np.arange(3)
            assert (await model.infer(x)).tolist() == [0, 1, 2]
            assert model.stats().backend == "python"
            with pytest.raises(TypeError):
                await model.infer("a", scale=object())
            assert await model.infer(1) == 1

    run(main)


def test_a_failing_warm_up_is_a_load_error(run):
    def fail(x):
        raise ValueError(f"no {x}")

    async def main():
        with pytest.raises(ml.LoadError, match=r"warm-up.*ValueError: no 3"):
            await ml.load(fail, inputs=3, instances=2)
        async with ml.load(fail, inputs=3, warmup=False) as model:
            with pytest.raises(ValueError, match="no 4"):
                await model.infer(4)

    run(main)


@pytest.mark.torch
def test_a_live_module_takes_and_gives_both_flavours(run):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def forward(self, x, y=None):
            return {"sum": x + (0 if y is None else y)}, [x.sum()]

        def double(self, x):
            return x * 2

    async def main():
        module = Net().eval()
        async with ml.load(module, instances=2) as model:
            named, (total,) = await model.infer(torch.ones(3), y=torch.ones(3))
            assert torch.equal(named["sum"], torch.full((3,), 2.0))
            assert isinstance(total, torch.Tensor)
            named, (total,) = await model.infer(np.ones(3, "f"))
            assert isinstance(named["sum"], np.ndarray)
            assert float(total) == 3.0
        async with ml.load(module, entry="double") as model:
            assert (await model.infer(torch.ones(2))).tolist() == [2, 2]
        with pytest.raises(ValueError, match="entry"):
            ml.load(module, entry="triple")

    run(main)
