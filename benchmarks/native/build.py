"""Compiles the floors, with the standard library and a C/C++ compiler alone.

A program is built again when its source, its flags or the torch beside it changed.
`python -m benchmarks.native.build` builds them ahead of a run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"


class BuildError(RuntimeError):
    """The compiler is missing or refused."""


def pingpong() -> Path:
    """The thread wake-up floor."""
    compiler = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-pthread"]
    return _build("pingpong", "pingpong.c", compiler, [], "")


def torch_loop() -> Path:
    """The C++ loop over a TorchScript file, linked to the installed torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("torch is not installed")
    torch = Path(spec.submodule_search_locations[0])
    lib = torch / "lib"
    compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-pthread"]
    return _build(
        "torch_loop",
        "torch_loop.cpp",
        [*compiler, "-isystem", str(torch / "include")],
        f"-L{lib} -Wl,-rpath,{lib} -Wl,--no-as-needed -ltorch_cpu -lc10 -ldl".split(
            " "
        ),
        (torch / "version.py").read_text(),
    )


def onnx_loop() -> Path:
    """The C loop over an .onnx file, with the backend's own sources."""
    return _backend_loop("onnx_loop", "onnxruntime")


def tensorflow_loop() -> Path:
    """The same over a SavedModel."""
    return _backend_loop("tensorflow_loop", "tensorflow")


def _backend_loop(name: str, backend: str) -> Path:
    dlpack = importlib.util.find_spec("tvm_ffi")
    if dlpack is None or not dlpack.submodule_search_locations:
        raise BuildError("<dlpack/dlpack.h> is missing: pip install apache-tvm-ffi")
    csrc = HERE.parents[1] / "csrc"
    folder = csrc / "backends" / backend
    sources = [
        *(path for path in sorted(folder.glob("*.c")) if path.stem != "module"),
        csrc / "engine" / "value.c",
        csrc / "engine" / "string_tensor.c",
        csrc / "backends" / "numbers.c",
    ]
    folders = [csrc / "engine", csrc / "backends", folder]
    headers = sorted(path for place in folders for path in place.glob("*.h"))
    compiler = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-pthread"]
    dlpack_include = Path(dlpack.submodule_search_locations[0]) / "include"
    includes = [*folders, dlpack_include]
    return _build(
        name,
        f"{name}.c",
        [*compiler, "-Werror", "-D_GNU_SOURCE", *(f"-I{path}" for path in includes)],
        [*map(str, sources), "-ldl", "-lm"],
        "".join(path.read_text() for path in (*headers, *sources)),
    )


def _build(
    name: str, source: str, compiler: list[str], link: list[str], extra: str
) -> Path:
    path = HERE / source
    digest = hashlib.sha256()
    for part in (path.read_text(), " ".join(compiler + link), extra):
        digest.update(part.encode() + b"\0")
    program = BUILD / f"{name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    BUILD.mkdir(exist_ok=True)
    print(f"building {source}", file=sys.stderr)
    for stale in BUILD.glob(f"{name}-*"):
        stale.unlink()
    partial = program.with_suffix(f".{os.getpid()}")
    command = [*compiler, str(path), "-o", str(partial), *link]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"no compiler: {error}") from error
    if result.returncode:
        raise BuildError(f"{' '.join(command)}\n{result.stderr}")
    partial.replace(program)
    return program


if __name__ == "__main__":
    print(pingpong())
    if importlib.util.find_spec("torch") is not None:
        print(torch_loop())
