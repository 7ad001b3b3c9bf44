"""How the torch backend gets built when it is first needed.

Most tests stand a folder in for torch and a script for the compiler.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyasyncml import LoadError
from pyasyncml.backends import _torch_build
from pyasyncml.backends import torch as backend

BUILD = "from pyasyncml.backends import torch; print(torch.build())"

Compiler = Callable[[str], Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYASYNCML_CACHE", str(folder))
    return folder


def pretend_torch(folder: Path, version: str) -> Path:
    root = folder / f"torch-{version}"
    root.mkdir()
    (root / "version.py").write_text(f"__version__ = '{version}'\n")
    return root


@pytest.fixture
def torch_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = pretend_torch(tmp_path, "9.8.7+cpu")
    monkeypatch.setenv("PYASYNCML_TORCH", str(root))
    return root


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Makes $CXX a script that logs its call, does as told and writes its output."""

    def make(does: str) -> Path:
        script = tmp_path / "cxx"
        script.write_text(
            f"#!/bin/sh\necho called >> {tmp_path}/calls\n{does}\n"
            'for last; do :; done\necho made > "$last"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return tmp_path / "calls"

    return make


def calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def leftovers(cache: Path) -> list[str]:
    found = [path for path in cache.rglob("*") if path.is_file()]
    return sorted(path.name for path in found if path.name != "lock")


def test_first_use_builds_once_and_says_so_in_one_line(
    cache: Path,
    torch_root: Path,
    compiler: Compiler,
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = compiler(":")
    made = backend.build()
    assert made.read_text() == "made\n"
    assert cache in made.parents
    assert backend.build() == made
    assert calls(log) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "building the torch backend for torch 9.8.7+cpu" in said


def test_force_builds_what_is_there_already(
    cache: Path, torch_root: Path, compiler: Compiler
) -> None:
    log = compiler(":")
    assert backend.build(force=True) == backend.build(force=True)
    assert calls(log) == 2


def test_another_torch_version_is_built_for_again_and_both_are_kept(
    cache: Path,
    torch_root: Path,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = compiler(":")
    first = backend.build()
    newer = pretend_torch(tmp_path, "9.9.0")
    monkeypatch.setenv("PYASYNCML_TORCH", str(newer))
    second = backend.build()
    assert second != first
    assert first.exists()
    assert calls(log) == 2


def test_changed_sources_are_built_again(
    cache: Path,
    torch_root: Path,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = compiler(":")
    first = backend.build()
    copy = tmp_path / "csrc"
    shutil.copytree(backend._sources(), copy)
    monkeypatch.setattr(backend, "_sources", lambda: copy)
    assert backend.build() == first
    with open(copy / "backends" / "torch" / "inputs.cpp", "a") as file:
        file.write("/* changed */\n")
    assert backend.build() != first
    assert calls(log) == 2


def test_cache_folder_follows_the_environment(
    torch_root: Path,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler(":")
    monkeypatch.delenv("PYASYNCML_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (tmp_path / "xdg" / "pyasyncml") in backend.build().parents
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (tmp_path / "home" / ".cache" / "pyasyncml") in backend.build().parents


def test_failed_build_says_what_the_compiler_said_and_leaves_nothing(
    cache: Path, torch_root: Path, compiler: Compiler
) -> None:
    compiler("echo 'x.cpp:1:2: error: no such thing' >&2; exit 1")
    with pytest.raises(LoadError, match=r"torch 9\.8\.7\+cpu:\n.*no such thing"):
        backend.build()
    assert leftovers(cache) == []
    compiler(":")
    assert backend.build().exists()


def test_missing_compiler_is_a_load_error_with_the_command_that_helps(
    cache: Path, torch_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match=r"apt-get install g\+\+"):
        backend.build()
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(LoadError, match="CXX=no-such-compiler"):
        backend.build()


def test_missing_torch_is_a_load_error_that_names_the_extra(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torch_build, "find_torch", lambda: None)
    with pytest.raises(LoadError, match=r"pip install 'pyasyncml\[torch\]'"):
        backend.build()
    monkeypatch.delitem(sys.modules, "pyasyncml.backends._torch", raising=False)
    with pytest.raises(LoadError, match=r"pip install 'pyasyncml\[torch\]'"):
        backend.capsule()


def test_wrong_torch_folder_in_the_environment_is_a_load_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYASYNCML_TORCH", str(tmp_path / "nothing"))
    with pytest.raises(LoadError, match="no torch package is there"):
        backend.build()


def test_cache_that_cannot_be_written_is_a_load_error_that_names_the_variable(
    torch_root: Path,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler(":")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYASYNCML_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(LoadError, match="PYASYNCML_CACHE"):
        backend.build()


def test_module_that_does_not_load_is_a_load_error_that_names_torch(
    cache: Path,
    torch_root: Path,
    compiler: Compiler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler(":")
    monkeypatch.delitem(sys.modules, "pyasyncml.backends._torch", raising=False)
    with pytest.raises(LoadError, match=r"doesn't load with torch 9\.8\.7\+cpu"):
        backend.capsule()
    assert "pyasyncml.backends._torch" not in sys.modules


def test_processes_that_start_together_build_once(
    cache: Path, torch_root: Path, compiler: Compiler, tmp_path: Path
) -> None:
    """The compiler waits for a gate that is opened once: a second build would hang."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    log = compiler(f"read line < {gate}")
    command = [sys.executable, "-c", BUILD]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        gate.write_text("go\n")
        printed = {first.communicate()[0], second.communicate()[0]}
    assert len(printed) == 1
    assert Path(printed.pop().strip()).exists()
    assert calls(log) == 1


def test_builder_that_was_killed_leaves_nothing_that_gets_used(
    cache: Path, torch_root: Path, compiler: Compiler, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    # Half an output, then no end: `cat` of a pipe nobody writes to.
    os.mkfifo(tmp_path / "never")
    compiler(
        'for last; do :; done; echo half > "$last"\n'
        f"echo > {started}; cat {tmp_path / 'never'}"
    )
    with subprocess.Popen([sys.executable, "-c", BUILD], start_new_session=True) as one:
        started.read_text()
        os.killpg(one.pid, signal.SIGKILL)
    assert list(cache.rglob("build-*")) != []
    compiler(":")
    made = backend.build()
    assert made.read_text() == "made\n"
    assert leftovers(cache) == [made.name]
    assert list(cache.rglob("build-*")) == []


@pytest.mark.torch
def test_real_build_in_the_cache_loads_and_lists_the_cpu(cache: Path) -> None:
    pytest.importorskip("torch")
    script = (
        "from pathlib import Path\n"
        "from pyasyncml import devices\n"
        "from pyasyncml.backends import _torch_build, torch\n"
        "made = torch.build(force=True)\n"
        "key = _torch_build.build_key(_torch_build.find_torch(), torch._sources())\n"
        "assert _torch_build.key_of(made) == key\n"
        "torch._build = lambda *_, **__: made\n"
        "assert 'cpu' in [d.device for d in devices() if d.backend == 'torch']\n"
        "import sys\n"
        "assert 'torch' not in sys.modules\n"
        "assert Path(sys.modules['pyasyncml.backends._torch'].__file__) == made\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(leftovers(cache)) == 1


@pytest.mark.torch
@pytest.mark.parametrize("order", ["torch first", "torch after"])
def test_library_loads_before_and_after_import_torch(order: str) -> None:
    pytest.importorskip("torch")
    imports = ["import torch", "from pyasyncml.backends import torch as b; b.capsule()"]
    if order == "torch after":
        imports.reverse()
    script = (
        "\n".join(imports) + "\nimport torch\n"
        "assert torch.ones(3).sum() == 3\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "for name in ('libtorch_cpu.so', 'libgomp'):\n"
        "    assert len({path for path in maps if name in path}) <= 1, name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
