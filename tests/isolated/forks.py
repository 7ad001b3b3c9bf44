"""Forks, and ends with status 0 if parent and child both did as they should."""

import asyncio
import multiprocessing
import os
import sys
import warnings

import pyasyncml as ml
from pyasyncml.testing import echo

# Of CPython itself, that a process with threads forks.
warnings.simplefilter("ignore", DeprecationWarning)


def expect_status_of_child(pid, expected=0):
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == expected, status


async def refused(what, *args):
    """Every use says why it can't be, and hangs nowhere."""
    said = "nothing: it worked in a forked child"
    try:
        result = what(*args)
        await result
    except ml.Error as error:
        said = str(error)
    assert "forked" in said, said


def leave(status):
    """The child of a process whose workers were at work ends, as any other. Only the
    leak checker would count what it has: those threads' stacks, which point to it, are
    not here, and what runs in the parent never comes back."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        os._exit(status)
    sys.exit(status)


async def use_in_child(model):
    await refused(model.infer, 1)
    await refused(model.close)
    await refused(echo)
    await refused(ml.load, int)
    await refused(ml.call, int)


async def use(model=None):
    model = model or await echo()
    assert await asyncio.gather(*map(model.infer, range(10))) == list(range(10))
    await model.close()


def after_use():
    """The parent has a model, and goes on using it."""
    model = asyncio.run(echo())
    pid = os.fork()
    if pid == 0:
        asyncio.run(use_in_child(model))
        leave(0)
    expect_status_of_child(pid)
    asyncio.run(use(model))


def before_use():
    """Nothing had begun: both may use it."""
    pid = os.fork()
    asyncio.run(use())
    if pid != 0:
        expect_status_of_child(pid)


def closed_before():
    """Models were used and closed: the child is told all the same."""
    asyncio.run(use())
    pid = os.fork()
    if pid == 0:
        asyncio.run(refused(echo))
        leave(0)
    expect_status_of_child(pid)


def in_flight():
    """Forked by a coroutine, with work running and waiting and a deadline set."""

    async def main():
        model = await echo()
        model.hold()
        futures = [model.infer(n, timeout=60) for n in range(10)]
        await model.begun(1)
        pid = os.fork()
        if pid == 0:
            for future in futures:
                future.cancel()
            await refused(model.infer, 1)
            leave(3)
        expect_status_of_child(pid, 3)
        model.release()
        assert await asyncio.gather(*futures) == list(range(10))
        await model.close()

    asyncio.run(main())


def for_others():
    """As a DataLoader does: the child never touches pyasyncml."""
    model = asyncio.run(echo(instances=2))
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    process = context.Process(target=print, args=("child",), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    asyncio.run(use(model))


globals()[sys.argv[1]]()
