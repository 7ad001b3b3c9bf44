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
from ._tracing import at_rest
from .errors import Error, LoadError, ModelClosed

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
        self, program: ServedProgram, name: str, common: dict[str, Any]
    ) -> None:
        #: Whether copies are served, and no longer the module's own memory.
        self.detached = False
        self.module = weakref.ref(program.module)
        self._program = replace(program, module=None)
        self._name, self._common = name, common
        self._constants = [
            (program.names.get(memory_of(tensor)), tensor)
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


def memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that are the same memory."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


@at_rest
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


async def serve_live(model: Model) -> None:
    """The model has come to serve a live module, if it does, and is handed out next."""
    live = model._live
    module = None if live is None else live.module()
    if live is None or module is None:
        return
    _models.setdefault(module, weakref.WeakSet()).add(model)
    trainer = trainer_of(module)
    if trainer is not None and trainer._driving and not live.detached:
        await swap_weights(model, await trainer._copy_weights())


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
        live = model._live
        other = await started(await call(live.model, self.tensors))
        other._live = live
        return other


async def detach_models(module: Any) -> None:
    """The module's memory is about to change: models that serve it get a copy."""
    from ._call import call

    # Again for those that a reload meanwhile has made to.
    while models := [m for m in _serving(module) if not m._closing]:
        copies = await call(Copies, module)
        outcomes = await asyncio.gather(
            *(swap_weights(model, copies) for model in models), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, ModelClosed):
                raise outcome
    for model in _serving(module):
        await model.close()  # which has begun, and may have to serve what it accepted


def _serving(module: Any) -> list[Model]:
    """The models that serve the module's own memory."""
    return [
        model
        for model in _models.get(module, ())
        if (live := model._live) is not None
        and not live.detached
        and live.module() is module
    ]


async def swap_weights(model: Model, weights: Any) -> None:
    """See `Model.update_weights`. What a reload has replaced meanwhile gets none."""
    live = model._live
    other = await weights.successor(model)
    if model._live is not live:
        await other.close(drain=False)
        return
    try:
        model._replace(other)
    except BaseException:
        await other.close(drain=False)
        raise
    if live is not None:
        live.detached = True
    await other.close()  # which has begun
