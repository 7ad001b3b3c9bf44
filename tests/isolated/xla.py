"""XLA in a process of its own: exits with work in flight, forks, other frameworks.

Arguments: what to do, and a bundle of `slow` (see test_xla_isolated.py)."""

import asyncio
import os
import sys
import warnings

import numpy as np

import pyasyncml as ml

what, path = sys.argv[1:3]
x = np.full((256, 256), 1e-3, np.float32)


async def exits(*, closing=False):
    """Three devices work on a program of their own threads', more waits."""
    model = await ml.load(path, device=["xla:0", "xla:1", "xla:2"])
    for _ in range(9):
        model.infer(x)
    while not any(model.stats().busy) and model.stats().running == 0:
        await asyncio.sleep(0)
    if closing:
        model.close()


async def use():
    async with ml.load(path) as model:
        y = await model.infer(x)
        assert y.shape == x.shape
        return y


def forks():
    """The child is refused, the parent goes on."""
    warnings.simplefilter("ignore")
    asyncio.run(use())
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(use())
        except ml.Error as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    asyncio.run(use())


def forks_after_a_look():
    """No model was loaded, but the client was there."""
    warnings.simplefilter("ignore")
    ml.devices()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(use())
        except ml.Error as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    asyncio.run(use())


def beside(order):
    """Others before it, or after it."""
    import importlib

    for name in order.split(","):
        if name == "xla":
            asyncio.run(use())
        else:
            importlib.import_module(name)
    import jax
    import torch

    y = jax.numpy.asarray(x) @ jax.numpy.asarray(x)
    z = torch.from_numpy(x) @ torch.from_numpy(x)
    np.testing.assert_allclose(np.asarray(y), z.numpy(), rtol=1e-5)
    asyncio.run(use())


if what == "exits":
    asyncio.run(exits())
elif what == "closing":
    asyncio.run(exits(closing=True))
elif what == "never_closed":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(exits())
elif what == "forks":
    forks()
elif what == "forks_after_a_look":
    forks_after_a_look()
else:
    beside(what)
