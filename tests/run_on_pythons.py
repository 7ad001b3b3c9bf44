"""Runs the core's tests, without torch, on the other Python versions found here.

Each test runs on one kind of loop; see brief.py. An interpreter counts as found when it
is on PATH or among pyenv's versions. Each gets an environment of its own under
.venv-core/, made anew only when what it was built from has changed. All versions are at
work at once; what one says is printed when it is through. Versions that aren't found
are named and left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.12", "3.13")
BUILD_NEEDS = ("setuptools>=77", "wheel", "apache-tvm-ffi>=0.1.6")


def works(python: str | Path, version: str) -> bool:
    """Whether this is the version asked for, can make an environment and has the
    headers to build against. A pyenv shim exists for versions that aren't chosen."""
    script = (
        "import ensurepip, os, sys, sysconfig\n"
        "header = os.path.join(sysconfig.get_path('include'), 'Python.h')\n"
        f"sys.exit('%d.%d' % sys.version_info[:2] != {version!r}\n"
        "         or not os.path.exists(header))\n"
    )
    command = [str(python), "-c", script]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find(version: str) -> str | None:
    candidates: list[str | Path] = []
    if on_path := shutil.which(f"python{version}"):
        candidates.append(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    return next((str(c) for c in candidates if works(c, version)), None)


def built_from() -> float:
    """When the newest file that the extension is built from was changed."""
    files = [ROOT / name for name in ("pyproject.toml", "setup.py", "constraints.txt")]
    files += [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    return max(path.stat().st_mtime for path in files)


#: Held while setuptools writes what it knows of the project beside the sources.
installing = threading.Lock()


def install(python: str, version: str, log: IO[str]) -> Path:
    """The environment's interpreter, with the project built and installed."""
    venv = ROOT / ".venv-core" / version
    inside = venv / "bin" / "python"
    stamp = venv / ".installed"
    if stamp.exists() and stamp.stat().st_mtime >= built_from():
        return inside

    def call(*command: str | Path) -> None:
        subprocess.run(
            command, check=True, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )

    if not inside.exists():
        call(python, "-m", "venv", venv)
    pip = [inside, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    pip += ["-c", "constraints.txt"]
    pip.append("--no-compile")  # most of it is never imported
    call(*pip, *BUILD_NEEDS)
    with installing:
        call(*pip, "--no-build-isolation", "-e", ".[test]")
    stamp.touch()
    return inside


def run(version: str) -> str:
    """Runs the tests on one version, prints what they say; the outcome in a word."""
    python = find(version)
    if python is None:
        return "not found, left out"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            inside = install(python, version, log)
            log.seek(log.truncate(0))  # it went well
            tests = [inside, "-m", "pytest", "-q", "-m", "not torch and not xla"]
            subprocess.run(
                [*tests, "tests"],
                check=True,
                cwd=ROOT,
                env=os.environ | {"PYASYNCML_TESTS_BRIEF": version.partition(".")[2]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        except subprocess.CalledProcessError as error:
            log.write(f"{error}\n")
            outcome = "FAILED"
        else:
            outcome = "passed"
        log.seek(0)
        print(f"== the core's tests on Python {version}\n{log.read()}", flush=True)
    return outcome


def main() -> int:
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        outcomes = list(pool.map(run, VERSIONS))
    for version, outcome in zip(VERSIONS, outcomes, strict=True):
        print(f"Python {version}: {outcome}")
    return 1 if "FAILED" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
