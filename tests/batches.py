"""What tests of batching share: a busy model, and arrays to ask it for."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np

import pyasyncml as ml
from pyasyncml.testing import echo

#: A delay that no test lives to see.
FOR_EVER = 3600.0


@contextlib.asynccontextmanager
async def busy(*, queue=None, **batching):
    """A batching echo model that is inside a run of its own, held: what is submitted
    waits until `model.release()`. That run shares with nobody and is `seen[0]`."""
    async with await echo(batching=ml.Batching(**batching), queue=queue) as model:
        model.hold()
        first = model.infer(["first"])  # no top-level text: it may be padded
        await model.begun(1)
        yield model
        model.release()
        await first


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def counted(*shape, first=0.0, dtype=np.float32):
    """An array whose elements count up from `first`."""
    return (first + np.arange(np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


async def outcomes(futures):
    return await asyncio.gather(*futures, return_exceptions=True)


def releases(model):
    """Why runs began, less the first of `busy`."""
    found = dict(model.stats().releases)
    found["alone"] -= 1
    return {reason: count for reason, count in found.items() if count}
