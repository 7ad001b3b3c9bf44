"""A bundle of `export.jax` with a state as the driver needs it (_program.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _load
from .._call import call
from ..backends.xla import Bundle, HeldArray
from ..errors import Error, LoadError
from ..model import Model, TensorSpec
from ._exported import ExportedStep
from ._tensor_file import Stored, checksum, read_tensors, write_checkpoint

_FORMAT = "pyasyncml xla checkpoint 1"
_POSITION = {"seed", "epoch", "step", "begin", "epochs"}
#: Dtypes of the numbers that a step gives, as csrc/engine/steps.c reads them.
_NUMBERS = {"float16", "bfloat16", "float32", "float64", "int32", "int64"}


class XlaProgram(ExportedStep):
    """Each run of the bundle is a step. What is trained is its state, which stays on
    the device: a step is given the old one for good and leaves the new."""

    def __init__(self, model: Model, bundle: Bundle) -> None:
        super().__init__(model)
        self._bundle = bundle
        inputs = model.signature.inputs
        rows = {spec.shape[0] if spec.shape else None for spec in inputs}
        # Inputs that are no batches can't come from arrays' rows; a run says which.
        self.rows: int | None = rows.pop() if len(rows) == 1 else None

    @classmethod
    async def load(
        cls, path: str, entry: str, device: str | None, threads: int
    ) -> XlaProgram:
        """Raises `LoadError`, `TypeError` and `ValueError`."""
        if device is not None and not isinstance(device, str):
            raise TypeError(
                "device: a bundle's step runs on one device, such as 'xla:0', got "
                f"{device!r}"
            )
        model = await _load.load(
            path, entry=entry, device=device or "xla:0", threads=threads, backend="xla"
        )
        try:
            bundle = model._bundle
            assert bundle is not None
            if not model.signature.stateful:
                raise LoadError(
                    f"{path}: {entry!r} has no state; a training step was expected "
                    "(export.jax(step, …, state=…) writes one)"
                )
            if not bundle.state:
                raise LoadError(
                    f"{path}: doesn't name the arrays of its state, an earlier version "
                    "wrote it: export it again"
                )
            for i, output in enumerate(model.signature.outputs):
                _check_number(path, i, output)
            return cls(model, bundle)
        except BaseException:
            await model.close()
            raise

    async def snapshot(
        self, position: dict[str, int]
    ) -> Callable[[str], Awaitable[None]]:
        arrays = await self._copy()

        async def write(path: str) -> None:
            await call(_write, path, arrays, position)

        return write

    async def restore(self, path: str) -> dict[str, int]:
        tensors, position = await call(_read, path)
        _check_same(path, tensors, self._bundle.state)
        bundle = self._bundle.over(
            state=[tensors[_key(array)].data for array in self._bundle.state]
        )
        assert self.model._load_again is not None
        # Loaded, and only then in the other's place: whole or not at all.
        model = await self.model._load_again(bundle)
        other, self.model = self.model, model
        await other.close()
        return position

    async def state(self) -> Any:
        return await self.model.infer()

    async def weights(self) -> Weights:
        return Weights(await self._copy())

    async def _copy(self) -> dict[HeldArray, np.ndarray[Any, Any]]:
        """The state's arrays, where no step runs."""
        leaves = _leaves(await self.model.infer())
        return dict(zip(self._bundle.state, leaves, strict=True))


class Weights:
    """The state's arrays as they were between two steps."""

    def __init__(self, arrays: Mapping[HeldArray, np.ndarray[Any, Any]]) -> None:
        self._arrays = {array.name: (array, value) for array, value in arrays.items()}

    async def successor(self, model: Model) -> Model:
        """The same model over these, started. Raises `Error` and `LoadError`."""
        bundle = model._bundle
        if bundle is None or model._load_again is None:
            raise Error(
                f"model {model.name!r} is no bundle of export.jax, as the trainer is"
            )
        if bundle.state or not bundle.weights:
            raise Error(
                f"model {model.name!r} "
                + ("keeps a state of its own" if bundle.state else "has no weights")
                + ": what gets a trainer's is exported with weights="
            )
        return await model._load_again(
            bundle.over(weights=[self._of(model, array) for array in bundle.weights])
        )

    def _of(self, model: Model, wanted: HeldArray) -> memoryview:
        found = self._arrays.get(wanted.name)
        if found is None:
            raise LoadError(
                f"update_weights: the trainer's state has no {wanted.name!r}, which "
                f"model {model.name!r} has among its weights (they are found by their "
                "keys: export it with weights={…} that are part of the state); it "
                "has " + _some(repr(name) for name in self._arrays)
            )
        if found[0] != wanted:
            raise LoadError(
                f"update_weights: {wanted.name!r} is {found[0]} in the trainer's state "
                f"and {wanted} among the weights of model {model.name!r}"
            )
        return _bytes(found[1])


def _check_number(path: str, i: int, output: TensorSpec) -> None:
    if output.shape != () or output.dtype not in _NUMBERS:
        what = f"{output.name!r}" if output.name else f"{i}"
        kind = f"{output.dtype}{list(output.shape or ())}" if output.dtype else "nested"
        raise LoadError(
            f"{path}: output {what} of the step is {kind}; a training step gives the "
            'loss, or a flat dict or tuple of numbers: {"loss": …, "accuracy": …}'
        )


def _leaves(tree: Any) -> Iterator[Any]:
    """The arrays of a structure, in the order of the bundle's list."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif tree is None:
        return
    elif not isinstance(tree, (list, tuple)):
        yield tree
        return
    for item in tree:
        yield from _leaves(item)


def _some(names: Iterator[str], most: int = 8) -> str:
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


# --- checkpoints ---


def _key(array: HeldArray) -> str:
    return f"state/{array.name}" if array.name else "state"


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(
    path: str,
    arrays: Mapping[HeldArray, np.ndarray[Any, Any]],
    position: Mapping[str, int],
) -> None:
    tensors = {
        _key(array): Stored(array.dtype, array.shape, _bytes(value))
        for array, value in arrays.items()
    }
    header = {"format": _FORMAT, "position": dict(position)}
    write_checkpoint(path, header, tensors)


def _read(path: str) -> tuple[dict[str, Stored], dict[str, int]]:
    """Raises `LoadError`."""
    try:
        tensors, metadata = read_tensors(path)
        if "pyasyncml" not in metadata:
            raise LoadError(f"{path}: is a safetensors file, but no checkpoint")
        text = metadata["pyasyncml"]
        header = json.loads(text)
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise LoadError(f"{path}: is no checkpoint, or damaged ({error})") from error
    form = header.get("format") if isinstance(header, dict) else header
    if form != _FORMAT:
        raise LoadError(
            f"{path}: is a checkpoint in the format {form!r}; that of a bundle's step "
            f"is {_FORMAT!r}"
        )
    position = header.get("position", {})
    whole = set(position) >= _POSITION
    if not whole or checksum(text, tensors) != metadata.get("sha256"):
        raise LoadError(f"{path}: is damaged, its checksum doesn't match")
    return tensors, position


def _check_same(
    path: str, tensors: Mapping[str, Stored], state: Sequence[HeldArray]
) -> None:
    here = {_key(array): str(array) for array in state}
    there = {key: str(tensor) for key, tensor in tensors.items()}
    wrong = [
        f"{key} is {there[key]} there, {kind} here"
        if key in there
        else f"{key} is only here"
        for key, kind in here.items()
        if there.get(key) != kind
    ]
    wrong += [f"{key} is only there" for key in there if key not in here]
    if wrong:
        raise LoadError(
            f"{os.fspath(path)}: is a checkpoint of another step: " + _some(iter(wrong))
        )
