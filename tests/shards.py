"""The tests in several processes at once, each of which takes the next file that none
has taken yet.

    python tests/shards.py [options of pytest]

Every process collects all tests, and so has imported what one that runs them all has.
A file is taken by making a file of its name in a folder that the processes share, which
succeeds once; when all its tests are through, those that failed are written there.
Lines of progress are printed as they come; what a process says at its end, when all are
through. One that crashes fails the run, and the others go on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import own_process
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "PYASYNCML_TEST_SHARDS"
MOST = 4  # processes: each takes a gigabyte or two

# --- a process of them: a plugin of pytest ---


class Shard:
    """Runs the tests of those files that this process gets to take."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest's own loop says what is the matter
        for name, items in files(session.items).items():
            if self.take(name):
                for item, following in zip(items, [*items[1:], None], strict=True):
                    self.run(session, item, following)
                self.done(name)
        return True

    def take(self, name: str) -> bool:
        try:
            (self.folder / quote(name, safe="")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def run(
        self, session: pytest.Session, item: pytest.Item, following: pytest.Item | None
    ) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def done(self, name: str) -> None:
        lines = [*dict.fromkeys(self.failed), END]
        (self.folder / quote(name, safe="")).write_text("\n".join(lines))
        self.failed.clear()


END = "all its tests ran"


def files(items: Sequence[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The tests by file. Those that run in a process of their own count as one file:
    it is one process."""
    found: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = item.nodeid.partition("::")[0]
        if own_process.marked(item):
            name = own_process.MARK
        found.setdefault(name, []).append(item)
    return found


def register(config: pytest.Config) -> None:
    # Processes that tests start are none of these.
    if folder := os.environ.pop(FOLDER, None):
        config.pluginmanager.register(Shard(Path(folder)), "shard")


# --- who starts them ---


def run(
    arguments: Sequence[str] = (),
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Runs pytest in as many processes as there are cores; 0 if all tests passed."""
    count = min(len(os.sched_getaffinity(0)), MOST)
    command = [sys.executable, "-m", "pytest", "--no-header", *arguments]
    command += ["-o", "console_output_style=classic"]
    command += ["--durations=15", "--durations-min=3"]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        shards = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**environment, FOLDER: folder},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
            for _ in range(count)
        ]
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            said = list(pool.map(relay, shards))
        statuses = [shard.wait() for shard in shards]
        for lines in said:
            print("".join(lines), flush=True)
        all_well = summary(Path(folder), statuses)
    return 0 if all_well else 1


def relay(shard: subprocess.Popen[str]) -> list[str]:
    """Prints a process's lines of progress; those from its first headline on, when the
    tests are through, are given back."""
    assert shard.stdout is not None
    kept: list[str] = []
    for line in shard.stdout:
        if kept or (line.startswith("===") and "test session starts" not in line):
            kept.append(line)
        else:
            print(line, end="", flush=True)
    return kept


def summary(folder: Path, statuses: Sequence[int]) -> bool:
    """Says in a line each what is wrong; whether nothing is."""
    wrong = [f"a process ended with status {status}" for status in statuses if status]
    taken = sorted(folder.iterdir())
    for path in taken:
        *failed, end = path.read_text().splitlines() or [""]
        wrong += [f"FAILED {test}" for test in failed]
        if end != END:
            wrong.append(f"NOT ALL RUN: {unquote(path.name)}")
    print(f"{len(statuses)} processes ran {len(taken)} files of tests", flush=True)
    print("\n".join(wrong) or "all passed", flush=True)
    return not wrong


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
