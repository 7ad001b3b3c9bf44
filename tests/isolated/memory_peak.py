"""Prints how many bytes more than before the process has had resident, at its peak,
because of one request: the second argument is the model's entry ("-": it has one), the
third what it is given, "many" numbers or "one", the fourth how many bytes after a
multiple of 64 they begin."""

import asyncio
import sys
from pathlib import Path

import numpy as np

import pyasyncml as ml

path, entry, given, offset = sys.argv[1:]
MANY = 2**25


def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def main():
    memory = np.ones(4 * (MANY if given == "many" else 1) + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + int(offset)
    x = memory[begin : begin + (4 * MANY if given == "many" else 4)].view(np.float32)
    async with ml.load(path, entry=None if entry == "-" else entry) as model:
        if given == "many":
            await model.infer(x[:16])  # aligned as x is
        before = peak()
        result = await model.infer(x)
        print(peak() - before)
        assert result.size == (1 if given == "many" else MANY)


asyncio.run(main())
