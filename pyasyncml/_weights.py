"""Weights of live modules, as models serve them while trainers change them.

A model loaded from a live module serves the module's own memory. Once a trainer drives
the module that memory changes in the middle of requests: from then on the model serves
copies, each taken between two steps and swapped in between two batches.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._copies import copy_all
from .errors import Error, LoadError

if TYPE_CHECKING:
    import torch

    from ._load_graph import ServedProgram
    from .model import Model
    from .training import Trainer

_models: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = (
    weakref.WeakKeyDictionary()
)
_trainers: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = (
    weakref.WeakKeyDictionary()
)


class Live:
    """A served graph, and which of its constants are a module's tensors, by name."""

    def __init__(
        self, module: Any, program: ServedProgram, name: str, common: dict[str, Any]
    ) -> None:
        names = {_place(tensor): name for name, tensor in tensors_of(module).items()}
        self._program = replace(program, module=None)
        self._name, self._common = name, common
        self._constants = [
            (names.get(_place(tensor)), tensor)
            for tensor in program.served.graph.constants
        ]

    def model(self, tensors: Mapping[str, torch.Tensor]) -> Model:
        """The same model over other tensors, not started.

        Raises `LoadError` where they aren't those of such a module.
        """
        missing = [
            name
            for name, _ in self._constants
            if name is not None and name not in tensors
        ]
        if missing:
            raise LoadError(
                f"update_weights: the trainer's module has no {missing[0]!r}"
                + (f" (nor {len(missing) - 1} more)" if len(missing) > 1 else "")
            )
        weights = [
            tensor if name is None else tensors[name]
            for name, tensor in self._constants
        ]
        served = self._program.served
        program = replace(
            self._program,
            served=replace(served, graph=served.graph.over(weights)),
        )
        # Kernels are picked by now; a warm-up would only take time.
        return program.model(self._name, {**self._common, "warmup_runs": 0})


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers by name, tied ones under each of theirs."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def copy_of(module: Any) -> dict[str, torch.Tensor]:
    """Copies, where no step runs: one call for all of them."""
    import torch

    tensors = tensors_of(module)
    unique = {id(tensor): tensor for tensor in tensors.values()}
    copies = [torch.empty_like(t, requires_grad=False) for t in unique.values()]
    copy_all(copies, list(unique.values()))
    by_id = dict(zip(unique, copies, strict=True))
    return {name: by_id[id(tensor)] for name, tensor in tensors.items()}


async def serve_live(module: Any, model: Model) -> None:
    """A model over a live module is about to be handed out."""
    _models.setdefault(module, weakref.WeakSet()).add(model)
    trainer = trainer_of(module)
    if trainer is not None and trainer._driving:
        await model.update_weights(trainer)


def trainer_of(module: Any) -> Trainer | None:
    reference = _trainers.get(module)
    return None if reference is None else reference()


def announce(module: Any, trainer: Trainer) -> None:
    """The trainer will drive the module. Raises `Error` where another does."""
    other = trainer_of(module)
    if other is not None and not other._closed:
        raise Error("module: another trainer drives it; close that first")
    _trainers[module] = weakref.ref(trainer)


class Copies:
    """A torch module's tensors by name, as they were between two steps."""

    def __init__(self, module: Any) -> None:
        self.tensors = copy_of(module)

    async def successor(self, model: Model) -> Model:
        """The same model over these, started. Raises `Error` and `LoadError`."""
        from ._call import call
        from .model import started

        if model._live is None:
            raise Error(
                f"model {model.name!r} wasn't loaded from a live module with example "
                "inputs; reload(source) changes what it serves"
            )
        return await started(await call(model._live.model, self.tensors))


async def detach_models(module: Any) -> None:
    """The module's memory is about to change: models over it get a copy."""
    from ._call import call

    models = [m for m in _models.get(module, ()) if not m._closing]
    if models:
        copies = await call(Copies, module)
        await asyncio.gather(*(swap_weights(model, copies) for model in models))


async def swap_weights(model: Model, weights: Any) -> None:
    """See `Model.update_weights`."""
    other = await weights.successor(model)
    try:
        model._replace(other)
    except BaseException:
        await other.close(drain=False)
        raise
    await other.close()  # which has begun
