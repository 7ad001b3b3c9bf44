"""Awaits a run that never ends; the first ctrl-C ends the await, the second the wait
for the run. Says on stdout how far it is."""

import asyncio
import atexit

from ticking import ticking

from pyasyncml.testing import echo


async def main():
    model = await echo(name="stuck")
    model.hold()
    future = model.infer(1)
    await model.begun(1)
    async with ticking():
        print("awaiting", flush=True)
        await future


atexit.register(print, "exiting", flush=True)  # called before the wait for the workers
asyncio.run(main())
