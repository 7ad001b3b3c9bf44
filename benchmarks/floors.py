"""Programs that take turns with the contenders from processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import devices
from .beat import Lag
from .load import Run
from .models import Model
from .native import build


class Peer:
    """A process that answers each line with a line of JSON, and rests in between."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def ask(self, line: str) -> Run:
        self.last = self.answer(line)
        return _run(self.last)

    def answer(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self._process.args!r} ended with {self._process.wait()}"
            )
        found: dict[str, Any] = json.loads(answer)
        return found

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()  # end of input ends it


def _run(fields: dict[str, Any]) -> Run:
    lag = fields.get("lag")
    return Run(
        requests=fields["requests"],
        wall_s=fields["wall_s"],
        cpu_s=fields["cpu_s"],
        p50_us=fields.get("p50_us"),
        p99_us=fields.get("p99_us"),
        lag=Lag(**lag) if lag else None,
    )


def pingpong() -> Peer:
    return Peer([str(build.pingpong())])


def alone(spin: bool) -> Peer:
    command = [sys.executable, "-m", "benchmarks.alone"]
    return Peer(command, None if spin else {"PYASYNCML_SPIN": "0"})


class Devices(Peer):
    """Simulated devices, or GPUs: see devices.py and gpus.py."""

    def __init__(self, module: str) -> None:
        super().__init__([sys.executable, "-m", f"benchmarks.{module}"])

    def timeline(self, instances: int, seconds: float) -> devices.Timeline:
        answer = self.answer(f"timeline{instances} {seconds}")
        found: devices.Timeline = answer["timeline"]
        return found


class TorchLoop:
    """The C++ loop on one model, checked to compute what Python computes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        sizes = [str(size) for size in model.shape]
        self._peer = Peer(
            [str(build.torch_loop()), str(model.path), str(model.input_path), *sizes]
        )

    def ask(self, threads: int, seconds: float) -> Run:
        run = self._peer.ask(f"{threads} {seconds}")
        total, expected = self._peer.last["sum"], self._model.weighted_sum
        if abs(total - expected) > 1e-3 * max(1.0, abs(expected)):
            raise RuntimeError(
                f"{self._model.name}: {total} in C++, {expected} in Python"
            )
        return run

    def __enter__(self) -> TorchLoop:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._peer.__exit__(*exception)


class OnnxLoop:
    """The C loop on an ONNX model over some inputs in turn, checked to compute what
    Python computes. `element`: ONNX's number of their type."""

    def __init__(
        self, model: Path, element: int, rows: Any, folder: Path, expected: Any
    ) -> None:
        inputs = folder / f"{model.stem}.rows"
        rows.tofile(inputs)
        weighted = expected.ravel().astype(float)
        self._expected = float(weighted @ range(len(weighted)))
        sizes = [str(size) for size in rows.shape[1:]]
        self._peer = Peer(
            [
                *(str(build.onnx_loop()), str(_library()), str(model)),
                *(str(element), str(len(rows)), str(inputs), *sizes),
            ]
        )

    def ask(self, how: str, threads: int, seconds: float) -> Run:
        """`how`: as native/onnx_loop.c says."""
        run = self._peer.ask(f"{how} {threads} {seconds}")
        total = self._peer.last["sum"]
        if abs(total - self._expected) > 1e-3 * max(1.0, abs(self._expected)):
            raise RuntimeError(f"{total} in C, {self._expected} in Python")
        return run

    def __enter__(self) -> OnnxLoop:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._peer.__exit__(*exception)


class TensorflowLoop:
    """The C loop on a SavedModel, checked to compute what Python computes."""

    def __init__(self, model: Path, x: Any, folder: Path, expected: Any) -> None:
        from pyasyncml.backends import tensorflow

        inputs = folder / "input"
        x.tofile(inputs)
        weighted = expected.ravel().astype(float)
        self._expected = float(weighted @ range(len(weighted)))
        self._peer = Peer(
            [
                *(str(build.tensorflow_loop()), *map(str, tensorflow.libraries())),
                *(str(model), str(inputs), *map(str, x.shape)),
            ]
        )

    def ask(self, how: str, threads: int, seconds: float) -> Run:
        """`how`: as native/tensorflow_loop.c says."""
        run = self._peer.ask(f"{how} {threads} {seconds}")
        total = self._peer.last["sum"]
        if abs(total - self._expected) > 1e-3 * max(1.0, abs(self._expected)):
            raise RuntimeError(f"{total} in C, {self._expected} in Python")
        return run

    def __enter__(self) -> TensorflowLoop:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._peer.__exit__(*exception)


def _library() -> Path:
    from pyasyncml.backends import onnxruntime

    return onnxruntime.library()
