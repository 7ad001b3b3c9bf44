"""Ends while work runs and waits. What is in flight, and how it ends: see below."""

import asyncio
import sys
import threading
import time

import pyasyncml as ml
from pyasyncml.testing import echo


async def busy():
    """Two runs burn the processors, two requests wait."""
    model = await echo(instances=2, delay=0.05, busy=True)
    for n in range(4):
        model.infer(n)
    await model.begun(2)


async def flying():
    """Each instance has three runs in flight, four requests wait."""
    model = await echo(instances=2, in_flight=3, delay=0.05)
    for n in range(10):
        model.infer(n)
    await model.begun(6)


async def drained():
    """The model is being closed, and serves what it accepted."""
    model = await echo(delay=0.02)
    for n in range(3):
        model.infer(n)
    model.close()
    await model.begun(1)


async def call():
    """A Python callable, which needs the GIL to end."""
    begun = threading.Event()

    def work():
        begun.set()
        time.sleep(0.05)
        return [object()]

    for _ in range(50):
        ml.call(work)
    while not begun.is_set():
        await asyncio.sleep(0)


async def loading():
    """A model whose warm-up runs."""
    begun = threading.Event()

    def work():
        begun.set()
        time.sleep(0.05)

    task = asyncio.ensure_future(ml.load(work, inputs=()).__aenter__())
    live = asyncio.ensure_future(ml.load(lambda _: work(), inputs=1).__aenter__())
    while not begun.is_set():
        await asyncio.sleep(0)
    task.cancel()
    live.cancel()


async def reloading():
    """Two versions are drained, a third one loads."""
    model = await echo(instances=2, delay=0.05, busy=True)
    reloads = []
    for _ in range(2):
        for n in range(4):
            model.infer(n)
        await model.begun(2)
        reloads.append(asyncio.ensure_future(model.reload()))
        while model.runs:
            await asyncio.sleep(0)
    model.infer(5)
    reloads.append(asyncio.ensure_future(model.reload()))
    await asyncio.sleep(0)


async def exits():
    """sys.exit() within the loop."""
    await busy()
    sys.exit(0)


kept = []


async def keeps():
    """Everything stays referenced by the module until the very end."""
    model = await echo(instances=2, delay=0.05)
    futures = [model.infer(n, timeout=60) for n in range(4)]
    kept.extend([model, futures, asyncio.get_running_loop()])
    await model.begun(2)


def in_a_daemon_thread():
    """A loop in a daemon thread goes on submitting while the interpreter exits."""
    begun = threading.Event()

    async def serve():
        model = await echo(instances=2)
        try:
            while True:
                await asyncio.gather(*map(model.infer, range(10)))
                begun.set()
        except (ml.ModelClosed, RuntimeError):
            pass  # the exit closes every model

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    begun.wait()


def never_closed():
    """The loop is still open, with its reader registered."""
    loop = asyncio.new_event_loop()
    kept.append(loop)
    loop.run_until_complete(keeps())


if __name__ == "__main__":
    what = globals()[sys.argv[1]]
    asyncio.run(what()) if asyncio.iscoroutinefunction(what) else what()
