"""A SavedModel's own training signature as the driver needs it (_program.py)."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .. import _load
from .._atomic import put_in_place, sync
from .._call import call
from ..backends import parse_devices
from ..backends.tensorflow import SharedProgram
from ..errors import BackendError, Error, LoadError
from ..model import Model
from ._exported import ExportedStep

_STATE = "checkpoint"  # which of a folder's checkpoints is the last; TensorFlow's name


class TensorflowProgram(ExportedStep):
    """Each run of the signature is a step. What is trained are the SavedModel's
    variables, which stay in its session."""

    rows = None

    def __init__(self, shared: SharedProgram, model: Model, device: str) -> None:
        super().__init__(model)
        self.shared = shared
        self.device = device

    @classmethod
    async def load(
        cls,
        source: str | os.PathLike[str] | SharedProgram,
        entry: str,
        device: str | None,
        threads: int,
    ) -> TensorflowProgram:
        """Raises `LoadError`, `TypeError` and `ValueError`."""
        where = "cpu" if device is None else device
        if (count := len(parse_devices(where))) > 1:
            raise ValueError(
                "device: a SavedModel's training step runs on one device, got "
                f"{count}: each has variables of its own"
            )
        shared = source if isinstance(source, SharedProgram) else SharedProgram(source)
        model = await _load.load(shared, entry=entry, device=where, threads=threads)
        try:
            if not model.signature.stateful:
                raise LoadError(
                    f"{shared.path}: running {entry!r} changes no variable; a training "
                    "step was expected (export.tensorflow writes one)"
                )
            return cls(shared, model, model._device_names[0])
        except BaseException:
            await model.close()
            raise

    async def snapshot(
        self, position: dict[str, int]
    ) -> Callable[[str], Awaitable[None]]:
        saved = await self.weights()

        async def write(path: str) -> None:
            await call(_write, saved, Path(path), position)

        return write

    async def restore(self, path: str) -> dict[str, int]:
        prefix, position = await call(_read, Path(path))
        try:
            await call(self.shared.restore, prefix)
        except BackendError as error:
            raise LoadError(
                f"{path}: is damaged, or of another program: {error}"
            ) from error
        return position

    async def state(self) -> Any:
        raise Error(
            "state: a SavedModel's variables are read from what save() writes, by "
            "tf.train.load_checkpoint"
        )

    async def weights(self) -> Saved:
        return await call(Saved, self.shared, self.device)


class Saved:
    """The variables as they were between two steps, in files of TensorFlow's."""

    def __init__(self, shared: SharedProgram, device: str) -> None:
        self._source = shared.path
        folder = tempfile.mkdtemp(prefix="pyasyncml-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.prefix = os.path.join(folder, "variables")
        shared.save(self.prefix, device=device)

    async def successor(self, model: Model) -> Model:
        """The same model with these variables, started. Raises `Error` and
        `LoadError`."""
        if model._backend_name != "tensorflow" or model._load_again is None:
            raise Error(f"model {model.name!r} is no SavedModel's")
        if not await call(_same_program, model._folder, self._source):
            raise LoadError(
                f"model {model.name!r} is of {model._folder}, the trainer of another "
                f"program, {self._source}: reload(source) changes what it serves"
            )
        shared = SharedProgram(self._source)
        other = await model._load_again(shared)
        try:
            # Now that there is a session on each of its devices: all get them.
            await call(shared.restore, self.prefix)
        except BaseException:
            await other.close(drain=False)
            raise
        return other


def _same_program(served: str | None, trained: str) -> bool:
    """Whether two folders are one, or hold the same graph."""
    if served is None:
        return False
    return os.path.samefile(served, trained) or filecmp.cmp(
        Path(served) / "saved_model.pb", Path(trained) / "saved_model.pb", shallow=False
    )


def _write(saved: Saved, folder: Path, position: dict[str, int]) -> None:
    """A checkpoint beside those that are there, then the folder's word that it is the
    last: whoever is killed leaves one that is whole."""
    folder.mkdir(exist_ok=True)
    numbers = [_number(path) for path in folder.glob("step-*.index")]
    name = f"step-{1 + max(numbers, default=0)}"
    for path in sorted(Path(saved.prefix).parent.glob("variables.*")):
        target = folder / (name + path.name.removeprefix("variables"))
        shutil.copyfile(path, target)
        sync(target)
    _write_text(folder / f"{name}.json", json.dumps(position))
    state = folder / (_STATE + ".new")
    _write_text(state, f'model_checkpoint_path: "{name}"\n')
    sync(folder)
    put_in_place(state, folder / _STATE)
    for path in folder.glob("step-*"):
        if path.name.partition(".")[0] != name:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _number(path: Path) -> int:
    digits = path.name.partition(".")[0].removeprefix("step-")
    return int(digits) if digits.isdigit() else 0


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def _read(folder: Path) -> tuple[str, dict[str, int]]:
    """The prefix of a folder's last checkpoint, and the position."""
    try:
        name = (folder / _STATE).read_text(encoding="utf-8").split('"')[1]
        position = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{folder}: {error.strerror or error}") from error
    except (IndexError, ValueError) as error:
        raise LoadError(f"{folder}: is no checkpoint, or damaged ({error})") from error
    return os.fspath(folder / name), position
