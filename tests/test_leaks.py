"""The check after every test (conftest.py) really fails a test that leaves something
behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

LEAKY = """
import asyncio, atexit, gc, os, threading
import conftest
from pyasyncml.testing import echo

conftest.PATIENCE = 0.1
kept = []

def test_nothing_left(run):
    async def main():
        async with await echo() as model:
            assert await model.infer(1) == 1
    run(main)

def test_future_left(run):
    async def main():
        async with await echo() as model:
            kept.append(model.infer(1))
            await kept[-1]
    run(main)

def test_model_left():
    kept.append(asyncio.run(echo()))

def test_request_left():
    async def main():
        model = await echo()
        model.hold()
        atexit.register(model.release)
        model.infer(1)
        await model.begun(1)
    kept.append(asyncio.new_event_loop())
    kept[-1].run_until_complete(main())

def test_descriptor_left():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_thread_left():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_unclosed_model_collected():
    asyncio.run(echo())
    gc.collect()

def test_exception_never_retrieved(run):
    async def main():
        async with await echo() as model:
            model.fail(1)
            model.infer(1)
    run(main)

def test_task_destroyed():
    async def wait(model):
        await model.infer(1)
    async def leave():
        model = await echo()
        model.hold()
        asyncio.ensure_future(wait(model))
        await model.begun(1)
        return model
    async def close(model):
        await model.close()
    loop = asyncio.new_event_loop()
    model = loop.run_until_complete(leave())
    loop.close()
    del loop
    gc.collect()
    model.release()
    asyncio.run(close(model))

def test_nothing_left_at_the_end():
    pass
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What pytest says of the tests above."""
    folder = tmp_path_factory.mktemp("leaky")
    for name in ("conftest", "brief", "installed", "own_process", "shards"):
        shutil.copy(HERE / f"{name}.py", folder)
    (folder / "test_leaky.py").write_text(LEAKY)
    options = ["-q", "-rA", "-p", "no:cacheprovider", "-k", "not uvloop and not debug"]
    options += ["-c", HERE.parent / "pyproject.toml", "--rootdir", folder]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def outcomes(report, test):
    return set(re.findall(rf"^(PASSED|FAILED|ERROR) \S*::{test}\b", report, re.M))


def said_of(report, test):
    """The sections of the report that are about the test."""
    parts = re.split(r"^_+ (?:ERROR at \w+ of )?(\w+).* _+$", report, flags=re.M)
    names, sections = parts[1::2], parts[2::2]
    return "".join(
        section for name, section in zip(names, sections, strict=True) if name == test
    )


@pytest.mark.parametrize("test", ["test_nothing_left", "test_nothing_left_at_the_end"])
def test_clean_test_passes_whatever_others_left(report, test):
    assert outcomes(report, test) == {"PASSED"}


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("test_future_left", "left behind: <Future finished"),
        (
            "test_model_left",
            r"left behind: <EchoModel 'echo'.*thread \d+ \(pyasyncml\)",
        ),
        ("test_request_left", r"left behind: .*Future.*Hub.*descriptor \d+ .*eventfd"),
        ("test_descriptor_left", r"left behind: descriptor \d+ \(/dev/null\)"),
        ("test_thread_left", r"left behind: thread \d+ \("),
        ("test_unclosed_model_collected", "unclosed model 'echo'"),
        ("test_exception_never_retrieved", "asyncio logged: .* never retrieved"),
        ("test_task_destroyed", "asyncio logged: Task was destroyed"),
    ],
)
def test_test_that_leaves_something_fails(report, test, said):
    assert outcomes(report, test) & {"FAILED", "ERROR"}
    assert re.search(said, said_of(report, test)), said_of(report, test)
