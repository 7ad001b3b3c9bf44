"""`python -m pyasyncml`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyasyncml import LoadError, cli, devices
from pyasyncml.backends import torch as torch_backend


def test_help_names_the_commands_and_loads_no_framework() -> None:
    script = (
        "import sys\n"
        "from pyasyncml import cli\n"
        "try:\n"
        "    cli.main(['--help'])\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "    sys.exit(f'loaded {heavy}' if heavy else stop.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "devices", "build"):
        assert command in done.stdout


@pytest.mark.leaves_threads
def test_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "pyasyncml", "devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(devices())
    assert re.fullmatch(r"python +cpu +cpu, \d+\.\d GiB", lines[-1])


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["build", "no-such"]])
def test_wrong_command_line_exits_with_two(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: python -m pyasyncml" in capsys.readouterr().err


def test_plot_that_cannot_be_written_is_told_before_the_demo_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main(**_: object) -> int:
        raise AssertionError("it ran")

    monkeypatch.setattr("pyasyncml.demo.main", main)
    missing = tmp_path / "missing"
    assert cli.main(["demo", "--plot", str(missing / "demo.png")]) == 2
    assert f"--plot: there is no folder {missing};" in capsys.readouterr().err
    assert cli.main(["demo", "--plot", str(tmp_path)]) == 2
    assert f"--plot: {tmp_path} is a folder" in capsys.readouterr().err


def test_build_torch_says_where_the_backend_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_backend, "build", lambda: "/somewhere/torch.so")
    assert cli.main(["build", "torch"]) == 0
    assert capsys.readouterr().out == "/somewhere/torch.so\n"


def test_build_torch_without_torch_says_why_and_exits_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build() -> None:
        raise LoadError("torch is not installed: pip install torch")

    monkeypatch.setattr(torch_backend, "build", build)
    assert cli.main(["build", "torch"]) == 1
    assert capsys.readouterr().err == "torch is not installed: pip install torch\n"
