"""Live modules and `.pt2` programs, from Python to a model that runs without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._weights import Live, memory_of, tensors_of
from .backends import parse_devices
from .batching import Batching
from .errors import LoadError
from .export._archive import read_program
from .export._compiled import read_compiled
from .export._lower import make_graph_model
from .export._module import export_module
from .export._program import Served, serve
from .model import Model


@dataclass(frozen=True)
class ServedProgram:
    """A program that is ready to be a model."""

    served: Served
    #: The live module that it was exported from, if it was.
    module: Any = None
    #: What that calls its tensors, by their memory.
    names: Mapping[tuple[Any, ...], str] = field(default_factory=dict)

    def model(self, name: str, common: dict[str, Any]) -> Model:
        """The model, not started. Raises `LoadError` for batches it can't run."""
        batching = common["batching"]
        if batching is not None:
            _check_batching(self.served, batching)
        home = self.served.graph.device
        if home != "cpu" and [name for name, _ in common["devices"]] == ["cpu"]:
            # A live module runs where it is.
            common = {**common, "devices": parse_devices(home)}
        model = make_graph_model(self.served.graph, name=name, **common)
        model._finish = self.served.finish
        model._structure = self.served.structure
        if self.module is not None:
            model._live = Live(self, name, common)
        return model


def serve_module(
    module: Any,
    entry: str | None,
    inputs: tuple[Any, ...],
    dynamic: Any,
    batching: Batching | None,
) -> ServedProgram:
    """Thread: a worker. Raises `LoadError`."""
    batch_axes = dict(batching.axes) if batching is not None else {}
    if dynamic is None and batching is not None and batching.pad is not None:
        dynamic = {}
        for axis_name, places in batching.pad.inputs.items():
            for place, axis in places.items():
                dynamic.setdefault(place, {})[axis] = axis_name
    program, names = export_module(
        module, inputs, dynamic, entry=entry, batch_axes=batch_axes
    )
    called = {memory_of(tensor): path for path, tensor in tensors_of(module).items()}
    return ServedProgram(serve(program, entry or "forward", names), module, called)


def serve_file(path: str, entry: str | None) -> ServedProgram:
    """Thread: a worker. Raises `LoadError`."""
    program, names = read_program(path)
    if entry is not None:
        raise LoadError(
            f"{path}: an exported program has one entry; it has no {entry!r}"
        )
    return ServedProgram(serve(program, "forward", names))


def serve_package(path: str, entry: str | None, runners: int) -> ServedProgram:
    """Of what `export.torch(…, compile=True)` wrote. Thread: a worker. Raises
    `LoadError`."""
    if entry is not None:
        raise LoadError(
            f"{path}: a compiled program has one entry; it has no {entry!r}"
        )
    return ServedProgram(read_compiled(path, runners))


def _check_batching(served: Served, batching: Batching) -> None:
    inputs = list(dict.fromkeys(path.partition("[")[0] for path in served.shapes))
    for path, shape in served.shapes.items():
        name = path.partition("[")[0]
        axis = batching.axes.get(name, batching.axes.get(inputs.index(name), 0))
        if axis < len(shape) and shape[axis] is not None:
            raise LoadError(
                f"batching: axis {axis} of input '{path}' is {shape[axis]} in the "
                "program and can't vary"
            )
