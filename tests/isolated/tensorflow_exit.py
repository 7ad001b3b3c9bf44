"""Ends while TensorFlow runs. The second argument says how."""

import asyncio
import os
import sys

import numpy as np

import pyasyncml as ml

model = None


async def begin():
    global model
    model = await ml.load(sys.argv[1], entry="loop", instances=2)
    x = np.eye(64, dtype=np.float32)
    futures = [model.infer(x=x, n=n) for n in (1, 3000, 3000, 3000)]
    await futures[0]


asyncio.run(begin())
if sys.argv[2] == "fork":
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(begin())
        except ml.Error as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
elif sys.argv[2] == "drops":
    del model
