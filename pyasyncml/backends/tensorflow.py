"""The tensorflow backend: SavedModel folders, run by TensorFlow's C library.

The library is the one in the installed wheel, `libtensorflow_cc.so.2`. It is loaded
when the first SavedModel is, by itself: `import tensorflow` isn't needed, and may come
before or after it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import LoadError
from . import parse_devices

_LIBRARY = "libtensorflow_cc.so.2"
_FRAMEWORK = "libtensorflow_framework.so.2"  # which that one needs

_lock = threading.Lock()
_opened = False


def capsule() -> Any:
    """The backend's table of functions (csrc/engine/backend.h).

    The first call in a process loads TensorFlow's library: half a second or so, without
    the GIL.

    Raises `LoadError` where TensorFlow is missing, or its version isn't supported.
    """
    global _opened
    native = _import_native()
    with _lock:
        if not _opened:
            native.open_library(*libraries())
            _opened = True
        return native.capsule


def _import_native() -> ModuleType:
    return importlib.import_module(f"{__package__}._tensorflow")


def libraries() -> tuple[Path, Path]:
    """TensorFlow's C library, and the one that it needs. Raises `LoadError`."""
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
    return folder / _LIBRARY, folder / _FRAMEWORK


def _find_package() -> Path | None:
    """Where `import tensorflow` would find it; nothing is imported."""
    try:
        spec = importlib.util.find_spec("tensorflow")
    except (ImportError, ValueError):  # something that poses as it
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


class SharedProgram:
    """A SavedModel whose variables several models see: one that trains and one that
    serves, say.

    A source for `pyasyncml.load`: ``await load(shared, entry="predict")`` and ``await
    load(shared, entry="train_step")`` run on one session a device, at once where they
    are asked to. What a training step has written the next request of the other reads,
    variable by variable: where a step's variables are to be seen together, don't serve
    while it runs, or serve a program of its own, into which `restore` brings what
    `save` wrote. The first model decides how many `threads` the session has. A warm-up
    with `inputs` of a training step trains.

    Each device that a model of the program is loaded on has variables of its own, which
    begin as the folder's: to share them, models run on the same device.

    The variables are in memory as long as a model of the program is, or this object.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Nothing is read yet."""
        self.path = os.fspath(path)
        self._native = _import_native()
        self._program = self._native.program(self.path)

    def save(
        self, prefix: str | os.PathLike[str], *, device: str | None = None
    ) -> None:
        """Write the variables to a checkpoint: files whose names begin with `prefix`,
        which `tf.train.load_checkpoint` reads.

        `device`: whose, "cuda:0" or the like; None: those of the device that a model of
        the program was loaded on first.

        Blocks for as long as that takes, without the GIL: ``await call(shared.save,
        prefix)``. Steps that run meanwhile may be in it in part. Raises `LoadError`
        where the SavedModel can't be loaded, has no operations for it or has no model
        on that device, `ValueError` for no device's name, and `BackendError`.
        """
        where = None if device is None else parse_devices(device)[0][1]
        capsule()
        self._native.save(self._program, os.fspath(prefix), where)

    def restore(self, prefix: str | os.PathLike[str]) -> None:
        """Read the variables from a checkpoint that `save` wrote, or TensorFlow did for
        the same program: on all devices that its models run on, one by one, up to one
        where that fails (what can't be read is found at the first, which keeps what it
        has); on the CPU where there is no model yet. As `save`."""
        capsule()
        self._native.restore(self._program, os.fspath(prefix))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}>"
