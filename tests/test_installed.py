"""Skips for want of a package, which `make test` doesn't put up with (installed.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

TESTS = {
    "test_single.py": """
import pytest

@pytest.mark.skipif(True, reason="frobnicate is not installed")
def test_marked(): ...

def test_inside():
    pytest.skip("the model isn't installed")

def test_imports():
    pytest.importorskip("no_such_package")

def test_elsewhere():
    pytest.skip("no GPU here")

@pytest.mark.xfail(reason="is not installed")
def test_expected():
    assert False

def test_runs(): ...
""",
    "test_whole.py": """
import pytest

pytest.importorskip("no_such_package")

def test_never(): ...
""",
}
CONFTEST = """
import installed

def pytest_configure(config):
    installed.register(config)
"""


def outcomes(folder: Path, needed: str) -> dict[str, str]:
    for name, text in {**TESTS, "conftest.py": CONFTEST}.items():
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-rA", "--continue-on-collection-errors"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYASYNCML_TESTS_NEED_ALL": needed},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    pattern = r"^(PASSED|FAILED|XFAIL|ERROR|SKIPPED \[\d\]) (.*)$"
    return {
        re.split(r" - |: (?=Skipped|could)", what)[0]: how.split()[0]
        for how, what in re.findall(pattern, done.stdout, re.M)
    }


def test_what_skips_for_want_of_a_package_fails_where_all_are_needed(
    tmp_path: Path,
) -> None:
    found = outcomes(tmp_path, "1")
    assert {
        name: found.get(f"test_single.py::test_{name}")
        for name in ("marked", "inside", "imports", "expected", "runs")
    } == {
        "marked": "ERROR",  # before it began
        **dict.fromkeys(("inside", "imports"), "FAILED"),
        "expected": "XFAIL",
        "runs": "PASSED",
    }
    assert found["test_whole.py"] == "ERROR"
    assert list(found.values()).count("SKIPPED") == 1  # for want of a GPU


def test_otherwise_it_skips(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "")
    assert set(found.values()) == {"SKIPPED", "XFAIL", "PASSED"}


@pytest.mark.parametrize(
    "reason", ["CPython's tests are not installed", "torch sees no CUDA device here"]
)
def test_what_no_wheel_brings_may_skip(reason: str) -> None:
    import installed

    assert not installed.FOR_WANT.search(f"Skipped: {reason}")
