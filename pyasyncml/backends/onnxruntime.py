"""The onnxruntime backend: .onnx files, run by ONNX Runtime.

Its C library lies in the wheel `onnxruntime` (or `onnxruntime-gpu`), from version 1.19
on. It is opened when it is first needed; the Python package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import threading
from pathlib import Path
from typing import Any

from ..errors import LoadError

#: Wheels before it hold the library inside their Python module only.
_FIRST_WHEEL = "1.19"

_lock = threading.Lock()
_capsule: Any = None


def capsule() -> Any:
    """The backend's table of functions (csrc/engine/backend.h).

    The first call in a process opens the library: about 50 ms, with the GIL free. The
    environment variable PYASYNCML_ONNXRUNTIME names another libonnxruntime.so than the
    installed wheel's, of version 1.16 or newer.

    Raises `LoadError` where ONNX Runtime is missing or too old.
    """
    global _capsule
    with _lock:
        if _capsule is None:
            from . import _onnxruntime

            path = library()
            # Wheels from 1.29 on otherwise keep a database in the user's cache folder
            # and a thread that sends what is in it; asked later they only stop adding.
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
            debug = os.environ.get("PYASYNCML_LOG") == "debug"
            try:
                _capsule = _onnxruntime.open_library(path, debug)
            except OSError as error:
                raise LoadError(str(error)) from None
        return _capsule


def library() -> Path:
    """The library's file. Raises `LoadError`."""
    if named := os.environ.get("PYASYNCML_ONNXRUNTIME"):
        return Path(named)
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LoadError(
            "this model needs ONNX Runtime, which isn't installed: "
            "pip install 'pyasyncml[onnx]'"
        )
    for folder in spec.submodule_search_locations:
        found = [
            path
            for path in Path(folder, "capi").glob("libonnxruntime.so*")
            if re.fullmatch(r"libonnxruntime\.so(\.\d+)*", path.name)
        ]
        if found:
            return max(found, key=lambda path: len(path.name))
    raise LoadError(
        f"ONNX Runtime {_version()} is installed, whose wheel has no C library: "
        f"version {_FIRST_WHEEL} or newer is needed: pip install -U onnxruntime"
    )


def _version() -> str:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of some version"
