"""The tensorflow backend: SavedModel folders, run by TensorFlow's C library.

The library is the one in the installed wheel, `libtensorflow_cc.so.2`. It is loaded when
the first SavedModel is, by itself: `import tensorflow` isn't needed, and may come before
or after it.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

from ..errors import LoadError

_LIBRARY = "libtensorflow_cc.so.2"
_FRAMEWORK = "libtensorflow_framework.so.2"  # which that one needs

_lock = threading.Lock()
_opened = False


def capsule() -> Any:
    """The backend's table of functions (csrc/engine/backend.h).

    The first call in a process loads TensorFlow's library: half a second or so, without
    the GIL.

    Raises `LoadError` where TensorFlow is missing, or of a version that isn't supported.
    """
    global _opened
    from . import _tensorflow

    with _lock:
        if not _opened:
            folder = _find_library()
            _tensorflow.open_library(folder / _LIBRARY, folder / _FRAMEWORK)
            _opened = True
        return _tensorflow.capsule


def _find_library() -> Path:
    folder = _find_package()
    if folder is None:
        raise LoadError(
            "this model needs TensorFlow, which isn't installed: "
            "pip install 'pyasyncml[tensorflow]' (or tensorflow-cpu)"
        )
    if not (folder / _LIBRARY).is_file():
        raise LoadError(
            f"the TensorFlow in {folder} has no {_LIBRARY}: supported are 2.16 and "
            "later versions of 2, as the wheels for Linux have them"
        )
    return folder


def _find_package() -> Path | None:
    """Where `import tensorflow` would find it; nothing is imported."""
    try:
        spec = importlib.util.find_spec("tensorflow")
    except (ImportError, ValueError):  # something that poses as it
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))

