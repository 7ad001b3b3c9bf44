"""What the tests stand on: loops to run on, and the proof that nothing is left behind.

A test whose body is a coroutine takes `run`, and so runs on every kind of loop:

    def test_something(run):
        async def main(): ...

        run(main)
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import brief
import installed
import own_process
import pytest
import shards

import pyasyncml
from pyasyncml import _call, _core

without_uvloop = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"
)
SCRIPTS = Path(__file__).parent / "isolated"
KINDS_OF_LOOP = ["asyncio", pytest.param("uvloop", marks=without_uvloop)]

#: How long workers may take to end once nobody needs them.
PATIENCE = 5.0  # seconds


def pytest_configure(config: pytest.Config) -> None:
    brief.register(config)
    installed.register(config)
    own_process.register(config)
    shards.register(config)


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]
    return asyncio.new_event_loop()


async def finish() -> None:
    """What `asyncio.run` does before it closes a loop."""
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def run_on(
    loop: asyncio.AbstractEventLoop, main: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """`asyncio.run` on a loop that is given."""
    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(finish())
        loop.close()


@pytest.fixture(params=KINDS_OF_LOOP)
def make_loop(
    request: pytest.FixtureRequest,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes loops of one kind; the test closes them."""
    return lambda: new_loop(request.param)


@pytest.fixture(params=[*KINDS_OF_LOOP, "asyncio-debug"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a coroutine function on a new loop: asyncio's, uvloop's, in debug mode."""
    kind, _, debug = request.param.partition("-")

    def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop = new_loop(kind)
        loop.set_debug(bool(debug))
        return run_on(loop, main)

    return run


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """For threads that compete for the GIL: they change places fifty times as often,
    and none waits for its turn much longer than it has work to do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session")
def saved_model_folder() -> Path:
    """The folder with all SavedModels of the tests: see saved_models.py."""
    import saved_models

    return saved_models.folder()


# --- nothing is left behind ---


@pytest.fixture(scope="session", autouse=True)
def _what_stays() -> None:
    """The workers of `call` live as long as the process, so does a pipe of uvloop's:
    they are there before the first test."""

    # So would a thread that watches tqdm's bars; torch.export makes some, unseen.
    if importlib.util.find_spec("tqdm") is not None:
        importlib.import_module("tqdm").tqdm.monitor_interval = 0
    # And those of NumPy's BLAS, from its import on.
    if importlib.util.find_spec("numpy") is not None:
        importlib.import_module("numpy")

    async def begin() -> None:
        await pyasyncml.call(int)

    for kind in ["asyncio"] + ["uvloop"] * bool(importlib.util.find_spec("uvloop")):
        run_on(new_loop(kind), begin)


#: Of TensorFlow's library, from the first session, and of XLA's plugin, from the first
#: look at its devices, to the end of the process.
THREADS_THAT_STAY = {"tf_graph_runner", "tf_Compute", "tf_XLAEigen", "xla"}


def threads(*, only_ours: bool) -> set[str]:
    found = set()
    for path in Path("/proc/self/task").iterdir():
        try:
            name = (path / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if name == "pyasyncml" or not (only_ours or name in THREADS_THAT_STAY):
            found.add(f"thread {path.name} ({name})")
    return found


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"descriptor {name} ({os.readlink(f'/proc/self/fd/{name}')})")
        except FileNotFoundError:
            pass  # of the listing itself
    return found


def objects() -> set[str]:
    """Futures (a pending one may have a request in flight), hubs (of loops that weren't
    closed), models (with workers): what there is of the types made in C, not frozen."""
    return {
        f"{found!r}"
        for found in gc.get_objects()
        if any(base.__module__ == _core.__name__ for base in type(found).__mro__)
        and found is not _call._pool
    }


class Census:
    """What a test must not leave behind."""

    def __init__(self, *, only_our_threads: bool, with_objects: bool) -> None:
        self.only_our_threads = only_our_threads
        self.with_objects = with_objects
        # What exists by now is no matter of this test's; and collecting gets quick.
        gc.freeze()
        self.before = self.count()

    def count(self) -> set[str]:
        return threads(only_ours=self.only_our_threads) | descriptors()

    def more(self) -> set[str]:
        gc.collect()
        return (self.count() - self.before) | (
            objects() if self.with_objects else set()
        )

    def left(self) -> set[str]:
        """What has come since and doesn't go by itself."""

        async def call_something() -> None:
            # What was on its way to loops that are gone is freed by the next call.
            await pyasyncml.call(int)

        until = time.monotonic() + PATIENCE
        while left := self.more():
            if time.monotonic() > until:
                break
            asyncio.run(call_something())
            time.sleep(0.002)  # workers that are about to end need the processor
        return left


class Log(logging.Handler):
    """What asyncio logs as an error: "never retrieved", "Task was destroyed", …"""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def asyncio_log() -> Iterator[list[str]]:
    """What asyncio logged as errors. A test that expects some takes it from here; what
    it leaves fails it."""
    log = Log()
    logger = logging.getLogger("asyncio")
    logger.addHandler(log)
    yield log.lines
    logger.removeHandler(log)


failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[Any]:
    report = yield
    if call.excinfo is not None:
        item.stash[failed] = True
    return report


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(
    request: pytest.FixtureRequest, asyncio_log: list[str]
) -> Iterator[None]:
    """Fails a test that leaves a request, a model, a loop, a thread or a descriptor, or
    that made asyncio complain. (pytest itself fails it for warnings and for exceptions
    that were ignored, those of the collection here included.)

    Frameworks keep threads of their own: of a test that needs torch, or that says that
    one is about to start some, only ours count.
    """
    census = Census(
        only_our_threads=any(
            request.node.get_closest_marker(name)
            for name in ("torch", "xla", "leaves_threads")
        ),
        with_objects=not isinstance(request.instance, unittest.TestCase),  # it lives on
    )
    yield
    if request.node.stash.get(failed, False):
        return  # its traceback keeps its objects alive
    request.node.funcargs.clear()  # what fixtures gave
    left = census.left()
    if left:
        pytest.fail("left behind: " + ", ".join(sorted(left)), pytrace=False)
    if asyncio_log:
        pytest.fail("asyncio logged: " + "\n".join(asyncio_log), pytrace=False)


# --- the simulated accelerator ---


@pytest.fixture
def accelerators(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Two simulated devices (see accelerator/), as new. The test has the mark
    `accelerator`. Fails it if anything read memory that wasn't written or was freed, or
    if memory of the devices is left; a test that plants such a bug resets them itself.
    """
    import accelerator

    devices = accelerator.devices()
    for device in devices:
        device.reset()
    before = [device.counters().live_blocks for device in devices]
    yield devices
    if not request.node.stash.get(failed, False):
        read = [device.counters().poison_read for device in devices]
        assert not any(read), f"{read} reads of poison"
        request.node.funcargs.clear()
        until = time.monotonic() + PATIENCE
        while gc.collect() or (
            [device.counters().live_blocks for device in devices] > before
            and time.monotonic() < until
        ):
            time.sleep(0.002)
        left = [device.counters().live_blocks for device in devices]
        assert left <= before, f"blocks of the devices' memory: {before}, then {left}"
    for device in devices:
        device.reset()


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script of isolated/ whose output is read as it comes."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *args: str) -> subprocess.Popen[str]:
        # A shell's job in the background ignores ctrl-C, and so would the script.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPTS / script), *args],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a ctrl-C of who runs the tests isn't for it
            )
        finally:
            signal.signal(signal.SIGINT, before)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
