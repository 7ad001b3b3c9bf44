"""The torch backend: TorchScript archives, run by LibTorch.

The native half links LibTorch, so it is compiled against the torch that is installed:
with the package where torch was there then, otherwise once at first use, into the
user's cache folder. It is built again when torch's version changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import LoadError
from . import _torch_build
from ._torch_build import BuildError, Torch

_MODULE = f"{__package__}._torch"
_FILE = "_torch" + str(sysconfig.get_config_var("EXT_SUFFIX"))

_lock = threading.Lock()


def capsule() -> Any:
    """The backend's table of functions (csrc/engine/backend.h), built where need be.

    The first call in a process loads LibTorch: about a second, with the GIL held. The
    first with a new torch compiles: about 20 seconds, with the GIL free.

    Raises `LoadError` where torch or a compiler is missing.
    """
    return _native().capsule


def graph(description: Any, keep: Any) -> Any:
    """A graph as `pyasyncml.export` describes it, as the options of a model.

    `keep` lives as long as anything that runs the graph. Raises `LoadError`.
    """
    try:
        return _native().graph(description, keep)
    except ValueError as error:
        raise LoadError(str(error)) from None


def with_weights(graph: Any, tensors: Any) -> Any:
    """The same graph over other tensors of the same kinds, in the order of its
    constants; the tensors live as long as anything that runs it. Raises `LoadError`."""
    try:
        return _native().with_weights(
            graph, [tensor._cdata for tensor in tensors], tensors
        )
    except ValueError as error:
        raise LoadError(str(error)) from None


def _native() -> ModuleType:
    with _lock:
        module = sys.modules.get(_MODULE)
        if module is None:
            torch = _require_torch()
            module = _import(_build(torch, force=False), torch)
        return module


def build(force: bool = False) -> Path:
    """Build the native half for the torch that is installed, unless that is done.

    `force`: build it in any case. Returns the module's file. Raises `LoadError`.
    """
    return _build(_require_torch(), force)


def _require_torch() -> Torch:
    try:
        torch = _torch_build.find_torch()
    except BuildError as error:
        raise LoadError(str(error)) from None
    if torch is None:
        raise LoadError(
            "this model needs PyTorch, which isn't installed: "
            "pip install 'pyasyncml[torch]'"
        )
    return torch


def _sources() -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_csrc", package.parent / "csrc"):
        if (folder / "backends" / "torch").is_dir():
            return folder
    raise LoadError(f"the torch backend's sources are missing from {package}")


def _build(torch: Torch, force: bool) -> Path:
    csrc = _sources()
    key = _torch_build.build_key(torch, csrc)
    installed = Path(__file__).with_name(_FILE)
    if not force and _torch_build.key_of(installed) == key:
        return installed
    folder = _cache_folder(torch, key)
    cached = folder / _FILE
    try:
        if not force and cached.exists():
            return cached
        with _locked(folder):
            # Another process may have built it while this one waited.
            if force or not cached.exists():
                _compile(torch, csrc, cached)
    except BuildError as error:
        raise LoadError(str(error)) from None
    except OSError as error:
        raise LoadError(
            f"the torch backend can't be built in {folder}: {error.strerror or error}; "
            "the environment variable PYASYNCML_CACHE names another folder"
        ) from error
    return cached


def _cache_folder(torch: Torch, key: str) -> Path:
    if named := os.environ.get("PYASYNCML_CACHE"):
        cache = Path(named)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        cache = Path(xdg, "pyasyncml")
    else:
        cache = Path("~/.cache/pyasyncml").expanduser()
    try:
        version = importlib.metadata.version("pyasyncml")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    # The module finds LibTorch by its absolute place: one build a place.
    place = sha256(os.fsencode(torch.root)).hexdigest()[:8]
    return cache.absolute() / f"torch-{version}-{key}-{place}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time, among threads and processes. The kernel drops the lock of
    a builder that dies."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(torch: Torch, csrc: Path, output: Path) -> None:
    """Call with the lock held. `output` appears whole or not at all."""
    for stale in output.parent.glob("build-*"):
        shutil.rmtree(stale, ignore_errors=True)
    _torch_build.find_compiler()
    print(
        f"pyasyncml: building the torch backend for torch {torch.version}, once "
        "(about 20 seconds)",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="build-", dir=output.parent) as folder:
        made = Path(folder, output.name)
        _torch_build.compile_backend(torch, csrc, made)
        os.replace(made, output)


def _import(path: Path, torch: Torch) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise LoadError(
            f"the torch backend doesn't load with torch {torch.version} "
            f"from {torch.root}: {error}"
        ) from error
    sys.modules[_MODULE] = module
    return module
