"""Ends while TensorFlow runs. The second argument says how."""

import asyncio
import os
import sys

import numpy as np

import pyasyncml as ml
from pyasyncml.backends.tensorflow import SharedProgram

model = None


async def begin():
    global model
    model = await ml.load(sys.argv[1], entry="loop", instances=2)
    x = np.eye(64, dtype=np.float32)
    futures = [model.infer(x=x, n=n) for n in (1, 3000, 3000, 3000)]
    await futures[0]


shared = SharedProgram(sys.argv[1])


async def use():
    async with ml.load(shared, entry="constant") as constant:
        await constant.infer()


asyncio.run(use())
asyncio.run(begin())
if sys.argv[2] == "fork":
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            asyncio.run(begin())
        except ml.Error as error:
            code = 0 if "forked" in str(error) else 2
        del shared
        sys.exit(code)  # as any program ends
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
elif sys.argv[2] == "drops":
    del model
