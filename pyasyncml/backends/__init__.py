"""The frameworks that models run on."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _core
from ..errors import LoadError

# DLDeviceType of the DLPack standard.
_DEVICE_TYPES = {
    "cpu": 1,
    "cuda": 2,
    "mps": 8,
    "rocm": 10,
    "privateuseone": 12,
    "xpu": 14,
    "xla": 240,
}
_DEVICE_NAMES = {number: name for name, number in _DEVICE_TYPES.items()}

Devices = tuple[tuple[str, tuple[int, int]], ...]


@dataclass(frozen=True)
class Device:
    """A device that a backend can run on, or one that it can't.

    `device`: what `load(device=…)` takes; "" where the backend itself can't run.
    `name`: the framework's own. `memory`: in bytes, all that it has; devices of the CPU
    share the host's; 0 where unknown. `available`: whether it is there. `reason`: why
    it isn't, or why its memory isn't known; "" otherwise.
    """

    backend: str
    device: str
    name: str
    memory: int
    available: bool
    reason: str


def parse_devices(device: str | Sequence[str]) -> Devices:
    """(name, (DLPack device type, index)) of each device named."""
    torch = sys.modules.get("torch")
    # Not there yet while another thread imports it.
    kinds = (str, *filter(None, [getattr(torch, "device", None)]))
    if isinstance(device, kinds):
        names = [device]
    elif isinstance(device, Sequence):
        names = list(device)
    else:
        raise TypeError(
            f"device: expected a str or a list of them, got {type(device).__name__}"
        )
    if not names:
        raise ValueError("device: expected at least one")
    parsed = []
    for name in names:
        if isinstance(name, kinds):
            name = str(name)
        else:
            raise TypeError(
                f"device: expected a str or a list of them, got {type(name).__name__}"
            )
        match = re.fullmatch(r"([a-z]+)(?::(\d{1,9}))?", name)
        if match is None or match[1] not in _DEVICE_TYPES:
            raise ValueError(
                f"device: expected 'cpu', 'cuda:0' or the like, got {name!r}; "
                f"there is {', '.join(_DEVICE_TYPES)} (TPUs are 'xla')"
            )
        index = int(match[2] or 0)
        parsed.append((name, (_DEVICE_TYPES[match[1]], index)))
    return tuple(parsed)


def load_backend(name: str) -> Any:
    """The capsule of a backend's function table (csrc/engine/backend.h).

    Raises `LoadError` where the framework is absent or can't be used.
    """
    if name == "python":
        return _core.python_backend
    if name == "echo":
        return _core.echo_backend
    return importlib.import_module(f"{__name__}.{name}").capsule()


def parse_options(
    name: str, options: Mapping[str, Any] | None, devices: Devices
) -> Any:
    """A backend's own options as it takes them, None where there are none.

    Raises `TypeError` and `ValueError`, which name those that the backend knows.
    """
    if not options:
        return None
    if name == "onnxruntime":
        return importlib.import_module(f"{__name__}._session_options").parse(
            options, devices
        )
    raise ValueError(f"options: the {name} backend has none, got {', '.join(options)}")


def devices() -> list[Device]:
    """What each installed backend can run on, and why one that is known can't.

    Loads the frameworks that are installed, and asks accelerators for their memory,
    which on CUDA starts its runtime: call it from `call` where that matters, and not
    before a fork.
    """
    found = []
    for backend in ("torch", "onnxruntime", "tensorflow", "xla"):
        try:
            capsule = load_backend(backend)
        except LoadError as error:
            found.append(Device(backend, "", "", 0, False, str(error)))
            continue
        for kind, index, name, memory, reason in _core.backend_devices(capsule):
            device = _DEVICE_NAMES.get(kind, f"type{kind}")
            device = device if device == "cpu" else f"{device}:{index}"
            found.append(Device(backend, device, name, memory, bool(name), reason))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found.append(Device("python", "cpu", "cpu", memory, True, ""))
    return found
