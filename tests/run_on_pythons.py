"""Runs the core's tests, without torch, on the other Python versions found here.

An interpreter counts as found when it is on PATH or among pyenv's versions. Each gets
an environment of its own under .venv-core/, made anew only when what it was built from
has changed. Versions that aren't found are named and left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def install(python: str, version: str) -> Path:
    """The environment's interpreter, with the project built and installed."""
    venv = ROOT / ".venv-core" / version
    inside = venv / "bin" / "python"
    stamp = venv / ".installed"
    if stamp.exists() and stamp.stat().st_mtime >= built_from():
        return inside
    if not inside.exists():
        subprocess.run([python, "-m", "venv", venv], check=True)
    pip = [inside, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    pip += ["-c", "constraints.txt"]
    subprocess.run([*pip, *BUILD_NEEDS], check=True, cwd=ROOT)
    subprocess.run(
        [*pip, "--no-build-isolation", "-e", ".[test]"], check=True, cwd=ROOT
    )
    stamp.touch()
    return inside


def main() -> int:
    lines = []
    failed = False
    for version in VERSIONS:
        python = find(version)
        if python is None:
            lines.append(f"Python {version}: not found, left out")
            continue
        print(f"== the core's tests on Python {version}", flush=True)
        inside = install(python, version)
        tests = [inside, "-m", "pytest", "-q", "-m", "not torch and not xla", "tests"]
        status = subprocess.run(tests, cwd=ROOT, check=False).returncode
        failed = failed or status != 0
        lines.append(f"Python {version}: {'passed' if status == 0 else 'FAILED'}")
    print("\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
