"""The guards that keep streams, memory and staging buffers of the torch backend right:
each left out, as a bug planted in a build for this test, gives wrong numbers on the
simulated accelerator; each in its place, the same course of events gives right ones."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import accelerator
import pytest

from pyasyncml.backends import _torch_build
from pyasyncml.backends import torch as backend

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch]

SCRIPT = Path(__file__).parent / "isolated" / "planted.py"
#: The course of events, the guard that is left out in it.
BUGS = {
    "wait": "wait",
    "record": "record",
    "lend": "record",
    "reuse": "reuse",
    "follow": "follow",
    "order": "order",
}


def build():
    """The torch backend with bugs to be planted; it is built once, as the double is."""
    torch, csrc = _torch_build.find_torch(), backend._sources()
    folder = accelerator.BUILDS / f"planted-{_torch_build.build_key(torch, csrc)}"
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / backend._FILE
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            made = folder / "made"
            flags = ["-O0", "-DPYASYNCML_PLANT_BUGS"]
            _torch_build.compile_backend(torch, csrc, made, flags)
            os.replace(made, module)
    return module


@pytest.fixture(scope="module")
def outcomes():
    """What happened in each course of events, with the guard and without it."""
    courses = [f"{course}:{bug}" for course in BUGS for bug in ("", BUGS[course])]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(build()), *courses],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    for line in done.stdout.splitlines():
        course, right, poison = line.split()
        found[course] = (right, int(poison) > 0)
    return found


@pytest.mark.parametrize("course", BUGS)
def test_results_are_right_with_the_guard(course, outcomes):
    assert outcomes[f"{course}:"] == ("right", False)


@pytest.mark.parametrize("course", ["wait", "record", "lend", "follow", "order"])
def test_memory_is_read_too_early_or_too_late_without_the_guard(course, outcomes):
    assert outcomes[f"{course}:{BUGS[course]}"] == ("wrong", True)


def test_staging_buffer_is_written_too_early_without_the_guard(outcomes):
    assert outcomes["reuse:reuse"] == ("wrong", False)
