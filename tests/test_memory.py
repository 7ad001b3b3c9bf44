"""Nothing that can become of a request, or of a model, keeps memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo


async def every_outcome(model):
    """Each thing that can become of a request, a few times."""
    array = np.zeros(10)
    for _ in range(20):
        await asyncio.gather(*(model.infer(array, [n, "text"]) for n in range(5)))
        model.hold()
        first = model.infer(array)
        await model.begun(model.runs + (not model.stats().running))
        cancelled, late = model.infer(array), model.infer(array, timeout=1e-4)
        cancelled.cancel()
        await asyncio.wait([late])
        late.exception()
        first.cancel()
        model.release()
        model.fail(2)
        for wrong in (object(), [array, {1}], 2**70):
            with pytest.raises((TypeError, ValueError)):
                model.infer(array, wrong)
        with pytest.raises(ValueError, match="timeout"):
            model.infer(array, timeout=-1)
        await asyncio.gather(
            *(model.infer(n) for n in range(3)), return_exceptions=True
        )
        refused = model.infer(bytes(20_000))
        assert isinstance(refused.exception(), ml.QueueFull)
        await ml.call(divmod, 7, 2)
        with pytest.raises(ZeroDivisionError):
            await ml.call(divmod, 7, 0)
        model.stats(), model.health(), model.signature


async def every_life(queue):
    """Each way that a model ends."""
    async with await echo(queue=queue) as model:
        await every_outcome(model)
    with pytest.raises(ml.ModelClosed):
        model.infer(1)
    async with ml.load(int, inputs=1, instances=2) as model:
        assert await model.infer("7") == 7
    with pytest.raises(ml.LoadError):
        await ml.load(int, inputs="not a number")


def test_no_outcome_of_a_request_keeps_a_block_of_memory(make_loop):
    """References that are lost show as blocks of the interpreter's allocator."""
    queue = ml.Queue(max_bytes=10_000)

    def rounds(count):
        for _ in range(count):
            loop = make_loop()
            loop.run_until_complete(every_life(queue))
            loop.close()
        gc.collect()
        return sys.getallocatedblocks()

    counts = [rounds(10) for _ in range(5)]
    # Caches of the interpreter's fill now and then, what is lost is lost every time: 20
    # of each outcome a round are 200 blocks for each reference that one of them loses.
    growth = [after - before for before, after in itertools.pairwise(counts)]
    assert min(growth) < 100, growth
