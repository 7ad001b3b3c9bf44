"""Ends while a device doesn't. A signal makes it go on."""

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerator import devices

import pyasyncml as ml

device = devices()[0]


async def main():
    model = await ml.load(
        torch.nn.Linear(4, 4), inputs=(torch.zeros(2, 4),), device=device.name
    )
    device.close(0xFFFF)
    for _ in range(4):
        model.infer(torch.zeros(2, 4))
    while not model.stats().running:
        await asyncio.sleep(0)


signal.signal(signal.SIGUSR1, lambda *_: device.open())
asyncio.run(main())
print("exiting", flush=True)
