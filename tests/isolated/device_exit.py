"""Ends ("leave"), or waits ("await"), while a device is shut. A signal opens it."""

import asyncio
import atexit
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerator import devices
from ticking import ticking

import pyasyncml as ml

device = devices()[0]


async def main(what):
    model = await ml.load(
        torch.nn.Linear(4, 4), inputs=(torch.zeros(2, 4),), device=device.name
    )
    device.close(0xFFFF)
    futures = [model.infer(torch.zeros(2, 4)) for _ in range(4)]
    while not model.stats().running:
        await asyncio.sleep(0)
    if what == "await":
        async with ticking():
            print("awaiting", flush=True)
            await asyncio.gather(*futures)


atexit.register(print, "exiting", flush=True)  # called before the wait for the workers
signal.signal(signal.SIGUSR1, lambda *_: device.open())
asyncio.run(main(*sys.argv[1:]))
