"""Awaits for ever: asyncio's own sleep, or one short run after another."""

import asyncio
import sys

from ticking import ticking

import pyasyncml as ml
from pyasyncml.testing import echo


async def sleep():
    async with ticking():
        print("awaiting", flush=True)
        await asyncio.sleep(1000)


async def infer():
    model = await echo(delay=0.01)
    print("awaiting", flush=True)
    while True:
        await model.infer(1)


async def many():
    model = await echo(instances=2)
    print("awaiting", flush=True)
    # Not gathered: before Python 3.11 a ctrl-C that comes as gather's own callback
    # begins is one child that gather never counts, and the program hangs, with
    # asyncio's futures (9 of 100 tried) as with these.
    while True:
        for future in [model.infer(n) for n in range(100)]:
            await future


async def call():
    event = asyncio.Event()
    print("awaiting", flush=True)
    while not event.is_set():
        await ml.call(sum, range(1000))


loop, what = sys.argv[1:]
if loop == "uvloop":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
asyncio.run(globals()[what]())
