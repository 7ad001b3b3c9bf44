"""Checkpoints: all that a training run needs to go on as if it had never stopped.

A checkpoint is one file in the safetensors format: parameters and buffers under
`module.…` and `loss.…`, optimizer state under `optimizer.…`, the random generators'
states under `generator`, `generator.1`, … (one a replica); all else is JSON in the
file's metadata. `safetensors.torch.load_file` reads it too.

Saving has two halves: `take_checkpoint` copies, where no step runs, and
`save_checkpoint` writes the copy, on any thread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .._copies import copy_all
from .._tracing import at_rest
from ..errors import LoadError
from . import _plain
from ._tensor_file import Stored, checksum, write_checkpoint
from ._trace import Pair, kind_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ._torch_step import TracedStep

_FORMAT = "pyasyncml checkpoint 1"


class Stateful(Protocol):
    """What keeps its state in a checkpoint; wrong states are `ValueError`s."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Checkpoint:
    """Copies of a run's tensors, and the rest as values for JSON."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    @property
    def position(self) -> Any:
        """What `take_checkpoint` was given as `position`."""
        return _plain.decode(self.header["position"], self.tensors)


@at_rest
def take_checkpoint(
    module: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Stateful | None = None,
    step: TracedStep | None = None,
    generators: Sequence[torch.Generator] = (),
    position: Any = None,
) -> Checkpoint:
    """A consistent copy, to be taken where no step runs.

    `position`: what the caller needs to go on: epoch, step, seed, order of the data.
    Numbers, strings, bytes, tensors, arrays, and lists, tuples and dicts of them.
    `step`: the traced step, where there is one. Raises `TypeError` for what can't be
    saved.
    """
    import torch

    pair = Pair(module, loss)
    live: dict[str, Tensor] = {**pair.parameters(), **pair.buffers()}
    names = {id(p): name for name, p in pair.parameters().items()}
    others: dict[str, Tensor] = {}
    fresh = _untouched(step)
    state: dict[str, dict[str, Any]] = {}
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        values = {key: value for key, value in group.items() if key != "params"}
        encoded = _plain.encode(values, others, f"group.{i}")
        members = [names.get(id(p), f"?{i}.{j}") for j, p in enumerate(group["params"])]
        groups.append({"parameters": members, "values": encoded})
        for name, parameter in zip(members, group["params"], strict=True):
            if id(parameter) in fresh or not optimizer.state.get(parameter):
                continue
            state[name] = {}
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    live[f"optimizer.{name}.{key}"] = value
                else:
                    state[name][key] = _plain.encode(value, others, f"{name}.{key}")
    for i, generator in enumerate(generators):
        others[_generator(i)] = generator.get_state()
    header = {
        "format": _FORMAT,
        "optimizer": type(optimizer).__name__,
        "groups": groups,
        "state": state,
        "schedule": _plain.encode(
            None if schedule is None else schedule.state_dict(), others, "schedule"
        ),
        "position": _plain.encode(position, others, "position"),
    }
    copies = {
        name: torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for name, t in live.items()
    }
    copy_all(list(copies.values()), list(live.values()))
    return Checkpoint({**copies, **others}, header)


def _untouched(step: TracedStep | None) -> set[int]:
    """Parameters whose momentum was made, but not used yet."""
    if step is None:
        return set()
    return {
        id(parameter)
        for bucket in step.buckets
        if bucket.unused and bucket.taken(step.optimizer) == 0
        for parameter in bucket.parameters(step.optimizer)
    }


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """See `write_checkpoint`. On any thread. Raises `OSError`."""
    write_checkpoint(path, checkpoint.header, _stored(checkpoint.tensors))


def _stored(tensors: dict[str, Tensor]) -> dict[str, Stored]:
    stored = {}
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        stored[name] = Stored(kind, tuple(tensor.shape), _bytes(tensor.cpu()))
    return stored


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint and verifies its checksum. Raises `LoadError`."""
    library = _safetensors()
    import safetensors

    try:
        with open(path, "rb"):
            pass  # safetensors' own words for these don't name the file
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if "pyasyncml" not in metadata:
                raise LoadError(f"{path}: is a safetensors file, but no checkpoint")
        tensors = library.load_file(os.fspath(path))
        text = metadata["pyasyncml"]
        if checksum(text, _stored(tensors)) != metadata.get("sha256"):
            raise LoadError(f"{path}: is damaged, its checksum doesn't match")
        header = json.loads(text)
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise LoadError(f"{path}: is no checkpoint, or damaged ({error})") from error
    if header.get("format") != _FORMAT:
        raise LoadError(
            f"{path}: is a checkpoint in the format {header.get('format')!r}; "
            f"this version reads {_FORMAT!r}"
        )
    return Checkpoint(tensors, header)


@at_rest
def restore_checkpoint(
    checkpoint: Checkpoint,
    module: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Stateful | None = None,
    step: TracedStep | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Any:
    """Puts everything back in place, bit by bit; gives the `position` saved.

    The module's and the optimizer's tensors are written to, not replaced.
    `step.refresh()` after that tells whether a traced step still holds. Raises
    `LoadError` for a checkpoint of another module or optimizer, naming what differs;
    nothing has changed then.
    """
    pair = Pair(module, loss)
    live: dict[str, Tensor] = {**pair.parameters(), **pair.buffers()}
    _check_tensors(checkpoint, live)
    groups = _check_groups(checkpoint, pair, optimizer)
    state = _state(checkpoint, pair)
    if schedule is not None:
        saved = _plain.decode(checkpoint.header["schedule"], checkpoint.tensors)
        if saved is None:
            raise LoadError("the checkpoint was written without a schedule")
        try:
            schedule.load_state_dict(saved)
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"the scheduler can't be restored: {error}") from error
    into, source = list(live.values()), [checkpoint.tensors[name] for name in live]
    for group, values in groups:
        _restore_group(group, values)
        for parameter in group["params"]:
            name = next(n for n, p in pair.parameters().items() if p is parameter)
            held = optimizer.state.get(parameter, {})
            saved_state = state.get(name)
            if saved_state is None:
                optimizer.state.pop(parameter, None)
                continue
            for key, value in saved_state.items():
                now = held.get(key)
                if _same_kind(now, value):
                    into.append(now)
                    source.append(value)
                else:
                    optimizer.state[parameter][key] = _placed(value, parameter, key)
            for key in held.keys() - saved_state.keys():
                del optimizer.state[parameter][key]
    copy_all(into, source)
    for i, generator in enumerate(generators):
        _restore_generator(generator, i, checkpoint.tensors)
    if step is not None:
        for bucket in step.buckets:
            bucket.stepped()
    return checkpoint.position


def _check_tensors(checkpoint: Checkpoint, live: dict[str, Tensor]) -> None:
    saved = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(("module.", "loss."))
    }
    wrong = [
        f"{Pair.name(name)} is {kind_of(saved[name])} there, {kind_of(live[name])} here"
        for name in live
        if name in saved and kind_of(saved[name]) != kind_of(live[name])
    ]
    wrong += [f"{Pair.name(name)} is only here" for name in live if name not in saved]
    wrong += [f"{Pair.name(name)} is only there" for name in saved if name not in live]
    if wrong:
        more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise LoadError(
            "the checkpoint is of another module: " + "; ".join(wrong[:8]) + more
        )


def _check_groups(
    checkpoint: Checkpoint, pair: Pair, optimizer: torch.optim.Optimizer
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    header = checkpoint.header
    if header["optimizer"] != type(optimizer).__name__:
        raise LoadError(
            f"the checkpoint is of another optimizer: {header['optimizer']} there, "
            f"{type(optimizer).__name__} here"
        )
    names = {id(p): name for name, p in pair.parameters().items()}
    here = [[names.get(id(p)) for p in g["params"]] for g in optimizer.param_groups]
    there = [group["parameters"] for group in header["groups"]]
    if here != there:
        raise LoadError(
            "the checkpoint's optimizer has other parameter groups: of "
            f"{[len(g) for g in there]} parameters there, "
            f"{[len(g) for g in here]} here, or in another order"
        )
    return [
        (group, _plain.decode(saved["values"], checkpoint.tensors))
        for group, saved in zip(optimizer.param_groups, header["groups"], strict=True)
    ]


def _state(checkpoint: Checkpoint, pair: Pair) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter and key."""
    state = {
        name: _plain.decode(values, checkpoint.tensors)
        for name, values in checkpoint.header["state"].items()
    }
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("optimizer."):
            parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
            state[parameter][key] = tensor
    return state


def _restore_group(group: dict[str, Any], values: dict[str, Any]) -> None:
    import torch

    for key, value in values.items():
        if isinstance(group.get(key), torch.Tensor):
            group[key].copy_(torch.as_tensor(value))
        else:
            group[key] = value


def _generator(replica: int) -> str:
    return f"generator.{replica}" if replica else "generator"


def _restore_generator(
    generator: torch.Generator, replica: int, tensors: dict[str, Tensor]
) -> None:
    """Its own state, or, where the checkpoint is of other devices or of fewer, one
    that follows from what is there."""
    if "generator" not in tensors:
        return
    saved = tensors.get(_generator(replica))
    if saved is not None and saved.shape == generator.get_state().shape:
        generator.set_state(saved)
        return
    known = hashlib.sha256(_bytes(tensors["generator"]))
    known.update(str(replica).encode())
    generator.manual_seed(int.from_bytes(known.digest()[:8], "little"))


def _same_kind(now: Any, value: Any) -> bool:
    import torch

    return (
        isinstance(now, torch.Tensor)
        and isinstance(value, torch.Tensor)
        and kind_of(now) == kind_of(value)
    )


def _placed(value: Any, parameter: Tensor, key: str) -> Any:
    """A state tensor where torch.optim keeps it: `step` on the CPU, others with the
    parameter."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    if key == "step" or value.shape != parameter.shape:
        return value.clone()
    made = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    made.copy_(value)
    return made


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise LoadError(
            "checkpoints need safetensors, which isn't installed: "
            "pip install 'pyasyncml[torch]'"
        ) from None
    return safetensors.torch
