"""Tests that skip for want of a package fail where everything is installed.

`make install` brings the wheels of all that the tests use, so that a test which skips
because one isn't there would be a test that never runs. `make test` says so by
PYASYNCML_TESTS_NEED_ALL=1; the core's tests on other Pythons, which have the core's
needs alone, don't.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import TypeVar

import pytest

ASKED = "PYASYNCML_TESTS_NEED_ALL"
#: Of the tests' own reasons and of `pytest.importorskip`.
FOR_WANT = re.compile(r"(is not|isn't) installed|^(Skipped: )?could not import")


class AllInstalled:
    """Plugin of pytest."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        return refuse((yield))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        return refuse((yield))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def refuse(report: Report) -> Report:
    if report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if FOR_WANT.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: {reason}, and {ASKED} is set"
    return report


def register(config: pytest.Config) -> None:
    if os.environ.get(ASKED):
        config.pluginmanager.register(AllInstalled(), "all-installed")
