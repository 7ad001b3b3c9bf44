"""Ends while an ONNX model runs and others wait, in one of several ways."""

import asyncio
import os
import sys

import numpy as np

import pyasyncml as ml


async def main(path, how):
    model = await ml.load(path, instances=2)
    x = np.ones((1, 96), np.float32)
    # Runs of some tenths of a second, or for ever where somebody stops them.
    n = np.int64([2**60 if how == "stopped" else 200_000])
    futures = [model.infer(x, n) for _ in range(4)]
    while not (model.stats().running or model.stats().runs):
        await asyncio.sleep(0)
    if how == "fork":
        child = os.fork()
        if child == 0:
            try:
                model.infer(x, n)
            except ml.Error as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if how == "stopped":
        for future in futures:
            future.cancel()
    if how == "exit":
        sys.exit(0)


asyncio.run(main(sys.argv[1], sys.argv[2]))
