"""Programs in a process of their own: exits, signals, forks. See isolated/."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import signal
import subprocess
import sys

import brief
import pytest
from conftest import KINDS_OF_LOOP, SCRIPTS


def run_script(script, *args):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def ends_well(done):
    assert (done.returncode, done.stderr) == (0, "")


# --- exit ---


def test_process_exits_with_busy_runs_in_flight_fifty_times():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(
            lambda _: run_script("exit_in_flight.py", "busy"),
            range(brief.times(50, 10)),
        )
        for done in outcomes:
            ends_well(done)


@pytest.mark.parametrize(
    "how",
    [
        *("flying", "drained", "call", "loading", "reloading"),
        *("exits", "keeps", "never_closed"),
    ],
)
def test_process_exits_whatever_is_in_flight(how):
    for _ in range(3):
        ends_well(run_script("exit_in_flight.py", how))


def test_process_exits_while_a_daemon_thread_submits():
    for _ in range(5):
        done = run_script("exit_in_flight.py", "in_a_daemon_thread")
        assert done.returncode == 0, done.stderr
        assert "Fatal" not in done.stderr


def test_exit_says_after_five_seconds_for_what_it_waits_and_ctrl_c_ends_it(
    start_script,
):
    process = start_script("exit_while_held.py")
    assert process.stdout.readline() == "awaiting\n"
    process.send_signal(signal.SIGINT)
    lines = []
    while not lines or "pyasyncml: waiting" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    assert "KeyboardInterrupt\n" in lines
    assert "waiting for 1 run of model 'stuck'" in lines[-1]
    assert "ctrl-C" in lines[-1]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=4) == 130
    assert process.stderr.read() == ""


def test_second_ctrl_c_ends_the_process_at_once(start_script):
    process = start_script("exit_while_held.py")
    assert process.stdout.readline() == "awaiting\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "exiting\n"
    for _ in range(20):  # the first may come while the hook still prints
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=0.2) == 130
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert "pyasyncml: waiting" not in process.stderr.read()  # of the five seconds


@pytest.mark.parametrize("loop", KINDS_OF_LOOP)
@pytest.mark.parametrize("what", ["infer", "many", "call"])
def test_ctrl_c_ends_the_program_as_it_ends_an_asyncio_program(
    start_script, loop, what
):
    outcomes = []
    for script_does in ("sleep", what):
        process = start_script("interrupted.py", loop, script_does)
        assert process.stdout.readline() == "awaiting\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        outcomes.append((process.returncode, stderr.splitlines()[-1]))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] == (-signal.SIGINT, "KeyboardInterrupt")


# --- fork ---


@pytest.mark.parametrize(
    "how", ["after_use", "before_use", "closed_before", "in_flight", "for_others"]
)
def test_forked_child_is_refused_or_undisturbed_and_hangs_nowhere(how):
    ends_well(run_script("forks.py", how))


# --- surroundings ---


def test_tensors_come_back_without_numpy():
    ends_well(run_script("without_numpy.py"))


@pytest.mark.skipif(
    importlib.util.find_spec("nest_asyncio") is None,
    reason="nest_asyncio is not installed",
)
def test_loops_nested_by_nest_asyncio_work():
    ends_well(run_script("nested_with_nest_asyncio.py"))
