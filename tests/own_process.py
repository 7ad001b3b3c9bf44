"""Tests that run in a process of their own, all of them in one.

The simulated accelerator changes the process that loads it: torch has an accelerator
from then on. Tests marked `accelerator` are therefore run by another pytest, started
when the first of them is due, which writes a report of every phase as it ends; here the
reports are taken as if the tests had run here. (So `-k`, `-x`, `--lf` and plugins that
read reports work as ever. `PYASYNCML_ACCELERATOR_HERE=1` runs them in this process:
for a debugger.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

MARK = "accelerator"
HERE = "PYASYNCML_ACCELERATOR_HERE"
REPORTS = "PYASYNCML_TEST_REPORTS"  # a descriptor


def marked(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARK) is not None


class Elsewhere:
    """Plugin of the process that was started first: lets marked tests run elsewhere."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.process: subprocess.Popen[str] | None = None
        self.reports: Any = None
        self.said = Path()
        self.left: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in filter(marked, items):  # theirs runs out over there, and is told
            item.add_marker(pytest.mark.timeout(0), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not marked(item):
            return None
        if self.process is None:
            self.left = {other.nodeid for other in item.session.items if marked(other)}
            self.start(item.session)
        self.left.discard(item.nodeid)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def start(self, session: pytest.Session) -> None:
        folder = Path(tempfile.gettempdir())
        self.said = folder / f"pyasyncml-accelerator-{os.getpid()}.log"
        reading, writing = os.pipe()
        nodes = [item.nodeid for item in session.items if item.nodeid in self.left]
        with open(self.said, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "-q"),
                    *("-c", str(self.config.inipath), f"--rootdir={session.path}"),
                    *nodes,
                ],
                cwd=self.config.rootpath,
                env={**os.environ, HERE: "1", REPORTS: str(writing)},
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )
        os.close(writing)
        self.reports = open(reading, encoding="utf-8")  # noqa: SIM115

    def of(self, item: pytest.Item) -> list[pytest.TestReport]:
        found: list[pytest.TestReport] = []
        for line in self.reports:
            data = json.loads(line)
            if data["nodeid"] != item.nodeid:
                break  # not in the order they were named in
            report = self.config.hook.pytest_report_from_serializable(
                config=self.config, data=data
            )
            found.append(report)
            if report.when == "teardown":
                return found
        assert self.process is not None
        text = self.said.read_text(encoding="utf-8", errors="replace")[-6000:]
        status = self.process.poll()
        found.append(
            pytest.TestReport(
                item.nodeid,
                item.location,
                dict.fromkeys(item.keywords, 1),
                "failed",
                f"the tests' own process ended ({status}) before this one did:\n{text}",
                "call",
            )
        )
        return found

    def pytest_sessionfinish(self) -> None:
        if self.process is not None:
            if self.left:  # after -x
                self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.reports.close()
            self.said.unlink()


class Reporting:
    """Plugin of the process that runs them: says how each phase went."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.to = os.fdopen(int(os.environ[REPORTS]), "w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(
            config=self.config, report=report
        )
        print(json.dumps(data), file=self.to, flush=True)


def register(config: pytest.Config) -> None:
    if os.environ.get(REPORTS):
        config.pluginmanager.register(Reporting(config), "accelerator-reporting")
    elif not os.environ.get(HERE):
        config.pluginmanager.register(Elsewhere(config), "accelerator-elsewhere")
