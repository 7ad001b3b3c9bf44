"""A simulated accelerator for the tests: builds it, loads it, controls it.

Loading registers the devices `privateuseone:0`, … with torch for the rest of the
process, and makes them torch's accelerator: tests that use it carry the mark
`accelerator` and run in a process of their own (see conftest.py).

    from accelerator import KERNEL, TO_DEVICE, devices

    first, second = devices()
    with first.gate(KERNEL):
        y = x.to("privateuseone:0") + 1  # enqueued; nothing runs
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyasyncml.backends import _torch_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: Sanitized tests run in a copy of the sources, and take the builds of the original.
BUILDS = Path(os.environ.get("PYASYNCML_TEST_BUILDS", ROOT / "build")) / "accelerator"

# Kinds of work, as in accelerator.h.
KERNEL, TO_DEVICE, TO_HOST, ON_DEVICE, MARK, WAIT, POISON = (1 << i for i in range(7))
COPIES = TO_DEVICE | TO_HOST | ON_DEVICE
KINDS = {KERNEL: "kernel", TO_DEVICE: "to device", TO_HOST: "to host"}
KINDS[ON_DEVICE] = "on device"

DLPACK_TYPE = 12  # kDLExtDev


@dataclass(frozen=True)
class Counters:
    """What one device has done since its last reset; order as in accelerator.h."""

    kernels: int
    to_device: int
    to_device_bytes: int
    to_device_pinned: int
    to_host: int
    to_host_bytes: int
    to_host_pinned: int
    on_device: int
    poison_read: int
    live_blocks: int
    live_bytes: int
    peak_bytes: int
    waits: int
    synchronized: int
    out_of_memory: int


@dataclass(frozen=True)
class Span:
    """Something that a stream did. Times are seconds of `time.monotonic()`."""

    device: int
    stream: int
    kind: int
    begin: float
    end: float


def build() -> Path:
    """Compiles the double unless that is done, about 20 seconds; the library's path."""
    torch = _torch_build.find_torch()
    assert torch is not None, "the simulated accelerator needs torch"
    sources = sorted(HERE.glob("*.cpp"))
    digest = hashlib.sha256(torch.version.encode() + Path(__file__).read_bytes())
    for path in (*sources, *sorted(HERE.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    # LibTorch is found by its absolute place.
    digest.update(os.fsencode(torch.root))
    library = BUILDS / digest.hexdigest()[:16] / "libaccelerator.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(torch, sources, library)
    return library


def _compile(torch: _torch_build.Torch, sources: list[Path], library: Path) -> None:
    command = [
        *_torch_build.find_compiler(),
        *_torch_build.compile_arguments(torch, ROOT / "csrc"),
        *("-O1", f"-I{HERE}", "-x", "c++", "-", "-x", "none"),
        *_torch_build.link_arguments(torch),
        "-o",
    ]
    unit = "".join(f'#include "{path}"\n' for path in sources)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        done = subprocess.run(
            [*command, str(made)], input=unit, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        os.replace(made, library)


def _python_module() -> types.ModuleType:
    """What Python's torch looks for: `torch.privateuseone`. Native code has no need."""
    module = types.ModuleType("torch.privateuseone")
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
    module.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]
    return module


@functools.cache
def _library() -> ctypes.CDLL:
    import torch  # its libraries come first

    library = ctypes.CDLL(str(build()))
    if not hasattr(torch, "privateuseone"):
        torch._register_device_module("privateuseone", _python_module())
    for name, *arguments in (
        ("set_device_count", ctypes.c_int),
        ("gate_stream", ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ("gate_kinds", ctypes.c_int, ctypes.c_uint32),
        ("slow", ctypes.c_int, ctypes.c_int, ctypes.c_int64),
        (
            "fail",
            *(ctypes.c_int, ctypes.c_uint32, ctypes.c_int64),
            *(ctypes.c_int, ctypes.c_char_p),
        ),
        ("lose", ctypes.c_int, ctypes.c_char_p),
        ("limit_memory", ctypes.c_int, ctypes.c_int64),
        ("counters", ctypes.c_int, ctypes.POINTER(ctypes.c_int64)),
        ("n_counters",),
        ("blocks_waiting",),
        ("pinned_blocks",),
        ("is_idle", ctypes.c_int),
        ("is_quiet",),
        ("reset", ctypes.c_int),
        ("watch", ctypes.c_int),
        ("timeline", ctypes.POINTER(ctypes.c_int64), ctypes.c_int64),
    ):
        function = getattr(library, f"accelerator_{name}")
        function.argtypes = arguments
        function.restype = ctypes.c_int64
    assert library.accelerator_n_counters() == len(Counters.__annotations__)
    return library


class Device:
    """One simulated device."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"privateuseone:{index}"

    def __repr__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def gate(self, kinds: int) -> Iterator[None]:
        """Work of these kinds doesn't begin, on no stream, until the end of the
        block, or until `open`."""
        self.close(kinds)
        try:
            yield
        finally:
            self.open()

    def close(self, kinds: int) -> None:
        """Work of these kinds, and of no others, waits from now on."""
        _library().accelerator_gate_kinds(self.index, kinds)

    def open(self) -> None:
        """Nothing waits any more for `close` or `gate`."""
        _library().accelerator_gate_kinds(self.index, 0)

    @contextlib.contextmanager
    def gate_stream(self, stream: int = -1) -> Iterator[None]:
        """Nothing begins on this stream (0: the default one; -1: all of them)."""
        _library().accelerator_gate_stream(self.index, stream, 1)
        try:
            yield
        finally:
            _library().accelerator_gate_stream(self.index, stream, 0)

    def slow(
        self,
        *,
        kernel: float = 0,
        to_device: float = 0,
        to_host: float = 0,
        on_device: float = 0,
    ) -> None:
        """Each takes so many seconds, without a core, before it does what it does."""
        for i, seconds in enumerate((kernel, to_device, to_host, on_device)):
            _library().accelerator_slow(self.index, i, round(seconds * 1e9))

    def fail(
        self,
        message: str = "simulated failure",
        *,
        kinds: int = KERNEL,
        after: int = 0,
        for_good: bool = False,
    ) -> None:
        """One piece of work fails, when it is its turn: the next of these kinds, or the
        one `after` so many. `for_good`: and with it the device."""
        _library().accelerator_fail(
            self.index, kinds, after, for_good, message.encode()
        )

    def lose(self, message: str = "device lost") -> None:
        """All that is enqueued, and whatever is asked of it from now on, fails."""
        _library().accelerator_lose(self.index, message.encode())

    def limit_memory(self, bytes_: int | None) -> None:
        """What live blocks may take together."""
        _library().accelerator_limit_memory(
            self.index, -1 if bytes_ is None else bytes_
        )

    def counters(self) -> Counters:
        numbers = (ctypes.c_int64 * len(Counters.__annotations__))()
        _library().accelerator_counters(self.index, numbers)
        return Counters(*numbers)

    def is_idle(self) -> bool:
        """Whether nothing is enqueued on any of its streams."""
        return bool(_library().accelerator_is_idle(self.index))

    def reset(self) -> None:
        """Waits for all streams; then it is as new, but for memory that is in use."""
        _library().accelerator_reset(self.index)


def devices(count: int = 2) -> list[Device]:
    """Loads the double, with so many devices (8 at most)."""
    _library().accelerator_set_device_count(count)
    return [Device(index) for index in range(count)]


def is_quiet() -> bool:
    """Whether no stream does anything before a gate opens or more is enqueued."""
    return bool(_library().accelerator_is_quiet())


def blocks_waiting() -> int:
    """Freed blocks of device memory that a stream they were recorded on still uses."""
    return int(_library().accelerator_blocks_waiting())


def pinned_blocks() -> int:
    """Blocks of pinned memory that somebody holds."""
    return int(_library().accelerator_pinned_blocks())


@contextlib.contextmanager
def timeline() -> Iterator[list[Span]]:
    """What streams did during the block, once it is over, by begin."""
    spans: list[Span] = []
    library = _library()
    library.accelerator_watch(1)
    try:
        yield spans
    finally:
        library.accelerator_watch(0)
        count = library.accelerator_timeline(None, 0)
        rows = (ctypes.c_int64 * (5 * count))()
        library.accelerator_timeline(rows, count)
        for at in range(0, 5 * count, 5):
            device, stream, kind, begin, end = rows[at : at + 5]
            spans.append(Span(device, stream, kind, begin / 1e9, end / 1e9))
        spans.sort(key=lambda span: span.begin)
