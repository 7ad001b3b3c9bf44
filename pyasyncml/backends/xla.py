"""The xla backend: bundles of StableHLO programs, run by a PJRT plugin.

A plugin is a shared library for one platform (CPU, CUDA, TPU, …). A process uses one,
found at first use, in this order:

1. those of ``PJRT_NAMES_AND_LIBRARY_PATHS`` ("name:path,name:path", JAX's variable);
2. installed wheels of accelerators: libtpu, and what is in the namespace `jax_plugins`;
3. the CPU's, `lammps_jax_pjrt_cpu`.

The first that finds a device is taken. ``PYASYNCML_XLA_PLATFORM=cpu`` takes only
plugins of that name. ``PYASYNCML_XLA_OPTIONS=name=value,…`` are options of the
platform's own; the CPU's ``cpu_device_count=4`` makes four devices of one.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import importlib.util
import json
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LoadError

_lock = threading.Lock()
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

Option = tuple[str, bool | int | float | str]


def capsule() -> Any:
    """The backend's table of functions (csrc/engine/backend.h), its plugin loaded.

    The first call in a process loads the plugin: about a second, with the GIL free.

    Raises `LoadError` where there is no plugin that can be used.
    """
    module = _import_native()
    with _lock:
        if module.platform() is None:
            with _warnings_only():
                _open(module)
        return module.capsule


def _import_native() -> Any:
    return importlib.import_module(f"{__package__}._xla")


@contextlib.contextmanager
def _warnings_only() -> Iterator[None]:
    """As JAX does: what XLA says of its options goes to stderr otherwise. It reads the
    level once; TensorFlow, and what this process starts, aren't to inherit it."""
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "1"
    try:
        yield
    finally:
        os.environ.pop(_LEVEL, None)


def _open(module: Any) -> None:
    wanted = os.environ.get("PYASYNCML_XLA_PLATFORM")
    options = _options(os.environ.get("PYASYNCML_XLA_OPTIONS", ""))
    reasons = []
    for name, path in _plugins():
        if wanted and name != wanted:
            continue
        reason = module.open(path, _with_defaults(name, options))
        if reason is None:
            return
        reasons.append(f"{name} ({path}): {reason}")
    if reasons:
        raise LoadError("no XLA plugin can be used: " + "; ".join(reasons))
    of_platform = f" for {wanted!r} (PYASYNCML_XLA_PLATFORM)" if wanted else ""
    raise LoadError(
        f"this model needs an XLA plugin, and none is installed{of_platform}: "
        "pip install 'pyasyncml[xla]' has the CPU's; the wheels jax[cuda12], jax[tpu] "
        "and PJRT_NAMES_AND_LIBRARY_PATHS have others"
    )


def _options(text: str) -> tuple[Option, ...]:
    options: list[Option] = []
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise LoadError(
                f"PYASYNCML_XLA_OPTIONS: expected name=value,…, got {item!r}"
            )
        options.append((name, _value(value)))
    return tuple(options)


def _with_defaults(name: str, options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The CPU is one device unless it is told to be more."""
    if name != "cpu" or any(option == "cpu_device_count" for option, _ in options):
        return options
    return (*options, ("cpu_device_count", 1))


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text


def _plugins() -> Iterator[tuple[str, str]]:
    """(platform, library) of each plugin there is, in order of preference."""
    configured = os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS", "")
    for item in filter(None, configured.split(",")):
        name, colon, path = item.partition(":")
        if not name or not colon:
            raise LoadError(
                "PJRT_NAMES_AND_LIBRARY_PATHS: expected name:path,name:path, "
                f"got {item!r}"
            )
        yield name, path
    if configured:
        return  # who says which wants no others
    for folder in _folders("libtpu"):
        yield from (("tpu", path) for path in glob.glob(f"{folder}/libtpu.so"))
    for folder in _folders("jax_plugins"):
        for path in sorted(glob.glob(f"{folder}/*/*.so")):
            if "plugin" in os.path.basename(path):
                # The folder is named after the platform: "xla_cuda12".
                name = os.path.basename(os.path.dirname(path)).removeprefix("xla_")
                yield name.rstrip("0123456789"), path
    for folder in _folders("lammps_jax_pjrt_cpu"):
        path = f"{folder}/pjrt_c_api_cpu_plugin.so"
        if os.path.exists(path):
            yield "cpu", path


def _folders(package: str) -> list[str]:
    """Where a package is, not imported: importing one may start its framework."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None or spec.submodule_search_locations is None:
        return []
    return list(spec.submodule_search_locations)


@dataclass(frozen=True)
class HeldArray:
    """An array that a bundle holds: its place in the structure, "layers/0/w"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Bundle:
    """A bundle as one model is made of it: its program, which others may have too, and
    what is held on the device at first. A source for `pyasyncml.load`.
    """

    def __init__(self, path: str) -> None:
        """Reads which arrays it holds. Blocks for a moment; raises `LoadError`."""
        self.path = path
        self.weights, self.state = _held(path)
        self._native = _import_native()
        self._source = self._native.source(None, None, None)

    def over(
        self,
        weights: Sequence[Any] | None = None,
        state: Sequence[Any] | None = None,
    ) -> Bundle:
        """The same program, which isn't compiled again once a model of this has been
        loaded, over these buffers, in order; None: over those that the file holds.
        They are borrowed for as long as there is a model of it."""
        other = Bundle.__new__(Bundle)
        other.__dict__.update(self.__dict__)
        other._source = self._native.source(
            self._source,
            None if weights is None else tuple(weights),
            None if state is None else tuple(state),
        )
        return other

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}>"


def _held(path: str) -> tuple[tuple[HeldArray, ...], tuple[HeldArray, ...]]:
    """What `export.jax` says of the weights and of the state; nothing where an earlier
    version wrote the bundle, or where it is none, which loading it will say."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return (), ()
    try:
        with archive:
            if "held" not in archive.namelist():
                return (), ()
            held = json.loads(archive.read("held"))
        weights, state = (
            tuple(
                HeldArray(str(name), str(dtype), tuple(int(size) for size in shape))
                for name, dtype, shape in held[folder]
            )
            for folder in ("weights", "state")
        )
    except Exception as error:  # zipfile raises whatever the damage leads to
        raise LoadError(
            f"the bundle is damaged: its list of arrays can't be read ({error})"
        ) from error
    return weights, state
