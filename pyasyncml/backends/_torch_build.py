"""How the torch backend's native half is compiled, at install and at first use.

One compiler call over one translation unit that includes all sources: most of the time
goes into LibTorch's headers, which are then read once (12 s and 1 GB instead of four
times that). Imports nothing of the package, so that setup.py can load it by path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What the sources need of the engine: the contract, nothing that links.
ENGINE_HEADERS = ("backend.h", "error.h", "value.h")
MARKER = b"pyasyncml-torch-build:"


class BuildError(Exception):
    """Nothing could be built; the message says what helps."""


class NoCompiler(BuildError):
    """There is no C++ compiler."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: the package's folder, and its version."""

    root: Path
    version: str


def find_torch() -> Torch | None:
    """The torch that is installed, without importing it.

    The environment variable PYASYNCML_TORCH (the folder of the package `torch`) comes
    first, for builds that run in an environment of their own; then what `import torch`
    would find; then the folder that this interpreter installs into, which pip's build
    isolation hides from imports.
    """
    if named := os.environ.get("PYASYNCML_TORCH"):
        torch = _torch_at(Path(named))
        if torch is None:
            raise BuildError(f"PYASYNCML_TORCH={named}: no torch package is there")
        return torch
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None:
        return _torch_at(Path(spec.origin).parent)
    return _torch_at(Path(sysconfig.get_path("platlib")) / "torch")


def _torch_at(root: Path) -> Torch | None:
    try:
        text = (root / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return Torch(root.resolve(), found[1]) if found else None


def sources(csrc: Path) -> list[Path]:
    """Everything the build reads of the project; `csrc` is laid out as in the
    repository."""
    headers = [csrc / "engine" / name for name in ENGINE_HEADERS]
    return headers + sorted((csrc / "backends" / "torch").glob("*.[ch]*"))


def build_key(torch: Torch, csrc: Path) -> str:
    """What a build is made from: torch's version, the Python ABI, the sources."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sources(csrc):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    abi = sysconfig.get_config_var("SOABI")
    return f"{torch.version}-{abi}-{digest.hexdigest()[:16]}"


def key_of(binary: Path) -> str | None:
    """The build key of a compiled module, read without loading it; None without one."""
    try:
        content = binary.read_bytes()
    except OSError:
        return None
    _, marker, rest = content.partition(MARKER)
    return rest.partition(b";")[0].decode(errors="replace") if marker else None


def find_compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first of c++, g++ and clang++."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise NoCompiler(
                f"CXX={os.environ['CXX']}: there is no such compiler; "
                "`unset CXX` to have one found"
            )
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise NoCompiler(
        "the torch backend needs a C++ compiler to be built, and none was found: "
        "`apt-get install g++` (Debian, Ubuntu) or `dnf install gcc-c++` (Fedora)"
    )


def compile_arguments(torch: Torch, csrc: Path) -> list[str]:
    """What the compiler is told, but for sources and output."""
    include = torch.root / "include"
    return [
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-DPAML_USE_ATEN_DLPACK",
        f'-DPAML_TORCH_VERSION="{torch.version}"',
        f'-DPAML_TORCH_BUILD_KEY="{build_key(torch, csrc)}"',
        f"-D_GLIBCXX_USE_CXX11_ABI={_cxx11_abi(torch)}",
        f"-I{csrc / 'engine'}",
        f"-I{csrc / 'backends' / 'torch'}",
        *(f"-isystem{path}" for path in _python_includes()),
        f"-isystem{include}",
        f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}",
    ]


def link_arguments(torch: Torch) -> list[str]:
    """What the linker is told. LibTorch is found beside the installed package, and in
    its absolute place for builds that lie elsewhere (editable installs, the cache)."""
    library = torch.root / "lib"
    return [
        "-shared",
        f"-L{library}",
        # libtorch brings the libraries of accelerators, by no symbol that is used here.
        "-Wl,--no-as-needed",
        "-lc10",
        "-ltorch_cpu",
        "-ltorch",
        "-Wl,-rpath,$ORIGIN/../../torch/lib",
        f"-Wl,-rpath,{library}",
    ]


def compile_backend(
    torch: Torch, csrc: Path, output: Path, extra: Sequence[str] = ()
) -> None:
    """Compile and link the module to `output`. Raises `BuildError`.

    `extra`: further options of the compiler.
    """
    files = [path for path in sources(csrc) if path.suffix == ".cpp"]
    # Python.h wants to come before the system's headers.
    files.sort(key=lambda path: (path.name != "module.cpp", path.name))
    unit = "".join(f'#include "{path.resolve()}"\n' for path in files)
    command = [
        *find_compiler(),
        *compile_arguments(torch, csrc.resolve()),
        *extra,
        *("-x", "c++", "-", "-x", "none"),
        *link_arguments(torch),
        *("-o", str(output)),
    ]
    done = subprocess.run(command, input=unit, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(
            f"the torch backend could not be built for torch {torch.version}:\n"
            + _first_errors(done.stderr, done.returncode)
        )


def _first_errors(text: str, status: int) -> str:
    lines = text.splitlines()
    errors = [line for line in lines if "error" in line or "undefined" in line]
    if status < 0 or any("Killed" in line for line in lines):
        errors.append("the compiler was killed: it needs about 1 GB of memory")
    return (
        "\n".join(errors[:5] or lines[-5:]) or f"the compiler's exit status: {status}"
    )


def _python_includes() -> list[str]:
    names = ("include", "platinclude")
    paths = list(dict.fromkeys(sysconfig.get_path(name) for name in names))
    if not any(os.path.exists(os.path.join(path, "Python.h")) for path in paths):
        raise BuildError(
            "the torch backend needs Python's headers to be built, and there is no "
            f"Python.h in {paths[0]}: `apt-get install python3-dev` (Debian) or "
            "`dnf install python3-devel` (Fedora)"
        )
    return paths


def _cxx11_abi(torch: Torch) -> str:
    config = torch.root / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    try:
        text = config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"_GLIBCXX_USE_CXX11_ABI=([01])", text)
    return found[1] if found else "1"
