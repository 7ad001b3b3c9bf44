"""One of the guards of the torch backend's device half left out, on the simulated
accelerator: what comes of it.

Arguments: the backend's module, built with PYASYNCML_PLANT_BUGS; then what to do, and
after a colon which guard to leave out. Prints one line for each: whether the result was
right, and how many reads of poison there were.
"""

import asyncio
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from accelerator import KERNEL, TO_DEVICE, blocks_waiting, devices, is_quiet

import pyasyncml as ml
from pyasyncml.backends import torch as backend

backend._import(Path(sys.argv[1]), backend._require_torch())
device = devices(1)[0]


class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2


async def until(condition):
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise TimeoutError


def enqueued():
    """Whether all of a run is, down to the copy of its result."""
    return device.counters().to_host >= 1 and is_quiet()


def forgotten():
    """Whether nobody holds any of the device's memory, and what is free is poisoned."""
    return device.counters().live_blocks == blocks_waiting() == 0 and is_quiet()


async def wait(model):
    """The computing stream has to wait for copies that are late."""
    x = torch.arange(1000.0)
    with device.gate(TO_DEVICE):
        asked = model.infer(x)
        await until(enqueued)
    return torch.equal(torch.as_tensor(await asked), x * 2)


async def record(model):
    """The input's memory is given back while the computing stream is late."""
    x = torch.arange(1000.0)
    held = "record" not in os.environ["PYASYNCML_PLANTED"]
    with device.gate(KERNEL):
        asked = model.infer(x)
        await until(lambda: enqueued() and (held or not device.counters().live_blocks))
        assert bool(device.counters().live_blocks) is held
    return torch.equal(torch.as_tensor(await asked), x * 2)


async def lend(model):
    """A result on the device is given back while its reader's stream is late."""
    x = torch.arange(1000.0)
    y = await model.infer(x.to(device.name))
    with device.gate_stream(0):
        z = y + 1
        live = device.counters().live_blocks
        del y
        await until(lambda: device.counters().live_blocks < live and is_quiet())
    return torch.equal(z.cpu(), x * 2 + 1)


async def reuse(model):
    """An input larger than both staging buffers goes through them in turns."""
    x = torch.arange(float(5 << 20))  # 20 MiB
    planted = "reuse" in os.environ["PYASYNCML_PLANTED"]
    parts = 3 if planted else 2  # that are enqueued while none has been copied
    with device.gate(TO_DEVICE):
        asked = model.infer(x)
        await until(lambda: device.counters().to_device >= parts)
        await until(lambda: enqueued() or not planted)
    return torch.equal(torch.as_tensor(await asked), x * 2)


async def made_late(model, stream_id, make, bug):
    """An input on the device that isn't there yet when it is given."""
    x = torch.arange(1000.0)
    there = x.to(device.name)
    with device.gate_stream(stream_id):
        asked = model.infer(make(there))
        if bug in os.environ["PYASYNCML_PLANTED"]:
            await asked
        else:
            await until(lambda: device.counters().kernels >= 2 and is_quiet())
            assert not asked.done()
    return torch.equal((await asked).cpu(), (x + 1) * 2)


async def follow(model):
    """The input is made on the default stream."""
    return await made_late(model, 0, lambda x: x + 1, "follow")


async def order(model):
    """The input is made beside it, on the stream that is current at the call."""
    side = torch.Stream(device.name)
    with side:
        return await made_late(model, side.stream_id, lambda x: x + 1, "order")


async def main():
    for what in sys.argv[2:]:
        test, _, planted = what.partition(":")
        os.environ["PYASYNCML_PLANTED"] = planted
        inputs = (torch.ones(1000),)
        async with ml.load(Twice(), inputs=inputs, device=device.name) as model:
            await until(forgotten)
            device.reset()
            right = await globals()[test](model)
            poison = device.counters().poison_read
        device.reset()
        print(what, "right" if right else "wrong", poison, flush=True)


asyncio.run(main())
