"""A real model on real files: magika's, which tells a file's type from its bytes.

The model (ONNX, 3 MB; Fratantonio et al., "Magika: AI-Powered Content-Type Detection",
arXiv 2409.13768) comes from the package magika 1.0.3, of which nothing else is used:
int32 [n, 2048] in, the first and the last 1,024 bytes of a file, stripped and padded
with 256; float32 [n, 214] out, a score a type. The files are the standard library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from .contenders import Contender, Starter, Workload, nothing_to_close

PACKAGES = ("onnxruntime", "magika", "numpy")
FILES = 300
NAME, TINY_NAME = "magika", "tiny ONNX"
SLOWER = 10  # as many times the seconds of the other suites: a file takes milliseconds

EACH, BLOCK, PADDING = 1024, 4096, 256

#: y = x + x, float32 [n, 4]: what a call costs besides the model.
TINY = bytes.fromhex(
    "08083a3f0a0e0a01780a017812017922034164641201675a140a0178120f0a0d080112090a0312016e"
    "0a02080462140a0179120f0a0d080112090a0312016e0a02080442040a001011"
)


def missing() -> list[str]:
    """The packages that aren't there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _folder() -> Path:
    spec = importlib.util.find_spec("magika")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "standard_v3_3"


def model() -> Path:
    return _folder() / "model.onnx"


def labels() -> list[str]:
    config = json.loads((_folder() / "config.min.json").read_text())
    return list(config["target_labels_space"])


def files(count: int = FILES) -> list[Path]:
    """So many of the standard library's files, of all its kinds, always the same."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix not in (".pyc", ".so", ".a")
        and "site-packages" not in path.parts
        and path.is_file()
        and path.stat().st_size >= 64
    ]
    # A kind in every folder: the sources would crowd the rest out.
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in found:
        kinds.setdefault((path.suffix, path.parent.name), []).append(path)
    chosen: list[Path] = []
    turn = 0
    while len(chosen) < count and any(len(group) > turn for group in kinds.values()):
        chosen += [group[turn] for group in kinds.values() if len(group) > turn]
        turn += 1
    return sorted(chosen[:count])


def features(path: Path) -> Any:
    """The model's input for a file: int32 [1, 2048]."""
    import numpy as np

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(BLOCK)
        file.seek(max(0, size - BLOCK))
        end = file.read(BLOCK)
    if size <= BLOCK:
        begin = end = begin.strip()
    begin, end = begin.lstrip()[:EACH], end.rstrip()[-EACH:]
    row = np.full((1, 2 * EACH), PADDING, np.int32)
    row[0, : len(begin)] = np.frombuffer(begin, np.uint8)
    row[0, 2 * EACH - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def session(path: Path, threads: int = 1) -> Any:
    """ONNX Runtime's own, with so many intra-op threads that don't spin."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )


def workload(path: Path, x: Any, instances: int, name: str = NAME) -> Workload:
    """The model at `path`, which has one input. The input of a request is a 1-tuple."""
    import pyasyncml

    own = session(path)
    feed = own.get_inputs()[0].name

    def run(x: tuple[Any]) -> Any:
        return own.run(None, {feed: x[0]})[0]

    async def native(**options: Any) -> Any:
        return await pyasyncml.load(path, instances=instances, threads=1, **options)

    return Workload(
        name=name,
        instances=instances,
        x=x,
        run=run,
        inner=run,
        scope=contextlib.nullcontext,
        native=native,
        close=nothing_to_close,
    )


def starters(path: Path, instances: int) -> dict[str, Starter]:
    """Who takes part: with two instances also those who use the loop's own pool."""
    from .contenders import bridge, native, to_thread
    from .text import taking_turns

    everyone: dict[str, Starter] = {"native": native.start, "bridge": bridge.start}
    if instances > 1:
        everyone["to_thread"] = to_thread.start
        everyone["run_async"] = run_async(path)
    return {name: taking_turns(name, start) for name, start in everyone.items()}


def run_async(path: Path) -> Starter:
    """ONNX Runtime's own asynchronous call, bridged by hand: its callback, which comes
    with the GIL on a thread of the session's pool, asks the loop to settle the future.
    The pool runs one request at a time, and needs two threads or it refuses."""

    async def start(workload: Workload) -> Contender:
        own = session(path, threads=2)
        feed = own.get_inputs()[0].name
        loop = asyncio.get_running_loop()

        def settle(future: asyncio.Future[Any], results: Any, error: str) -> None:
            if future.cancelled():
                return
            if error:
                future.set_exception(RuntimeError(error))
            else:
                future.set_result(results[0])

        def done(results: Any, future: asyncio.Future[Any], error: str) -> None:
            loop.call_soon_threadsafe(settle, future, results, error)

        def infer(x: tuple[Any]) -> Awaitable[Any]:
            future: asyncio.Future[Any] = loop.create_future()
            own.run_async(None, {feed: x[0]}, done, future)
            return future

        return Contender("run_async", infer, nothing_to_close)

    return start
