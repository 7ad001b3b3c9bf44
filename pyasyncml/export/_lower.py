"""The graph runner's door for whoever traces graphs: `lower` and `make_graph_model`.

graph = lower(make_fx(step, tracing_mode="symbolic")(...), bound=live, mutable=True)
model = make_graph_model(graph, name="train")
await model._start()
loss = await model.infer(x, y)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..errors import LoadError
from ..model import Model, make_model
from ._describe import Argument, Body, Describer


@dataclass(frozen=True)
class Graph:
    """A graph that is ready to run: what `make_graph_model` takes.

    `capsule` is the native half; `device` where the weights are ("cpu", "cuda:0");
    `constants` the tensors that it was built round.
    """

    capsule: Any
    name: str
    device: str
    constants: tuple[torch.Tensor, ...]

    def over(self, tensors: Sequence[torch.Tensor]) -> Graph:
        """The same graph over other tensors in the place of its constants."""
        from ..backends.torch import with_weights

        capsule = with_weights(self.capsule, tuple(tensors))
        return Graph(capsule, self.name, self.device, tuple(tensors))


def lower(
    gm: fx.GraphModule,
    *,
    bound: Mapping[str, torch.Tensor] | None = None,
    names: Sequence[str] | None = None,
    mutable: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    devices: Sequence[str] = (),
    name: str = "forward",
) -> Graph:
    """A traced graph of ATen operators, ready to run without Python.

    Placeholders whose name is in `bound` become constants: the very tensors given,
    without a copy. The others are the inputs, in order; `names` names them, their
    ``meta["val"]`` tells what they must be: dtype, rank, sizes, and which of these are
    equal. Inputs that were plain numbers in the tracing must be the same ones. The
    outputs are those of the graph's output node, in its structure (make_fx flattens
    what the function returned to a list).

    In-place operators on constants write to the tensors given with `mutable`, and to
    each instance's own copies otherwise. After a run `Tensor._version` has gone up for
    everything written to, also by fused optimizers.

    `generator` is given to every random operator that got none; operators that can't
    take one are refused. Dropout consumes it as eager dropout does the global one.

    `devices`: of the replicas that the graph trains (training/_parallel.py), each with
    a generator; nodes say by ``meta["replica"]`` whose they are.

    Raises `LoadError` that names every operator that isn't native, with its line.
    """
    bound = bound or {}
    generators = (generator,) if isinstance(generator, torch.Generator) else generator
    generators = tuple(generators or ())
    describer = Describer(name, mutable=mutable, generators=generators, devices=devices)
    slots: dict[fx.Node, Any] = {}
    inputs = []
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            continue
        tensor = bound.get(node.name)
        if tensor is None:
            tensor = bound.get(str(node.target))
        if tensor is not None:
            slots[node] = describer.constant(tensor)
            describer.symbols.fix(node.meta.get("val"), tensor)
        else:
            inputs.append(node)
    if names is not None and len(names) != len(inputs):
        raise ValueError(f"names: expected {len(inputs)}, got {len(names)}")
    for i, node in enumerate(inputs):
        title = names[i] if names is not None else node.name
        if "val" not in node.meta:
            raise LoadError(f"input '{title}': the graph doesn't say what it is")
        leaf = describer.leaf(title, node.meta["val"])
        leaf.slot = slots[node] = describer.slot()
        describer.arguments.append(
            Argument(title, leaf.kind.title(), ("leaf", i), leaf.kind == "fixed")
        )
    body = describer.body(gm.graph, gm, slots)
    description = description_of(describer, body, body.output)
    return graph_of(description, describer.constants, generators)


def description_of(
    describer: Describer, body: Body, output: Any, tree: Any = None
) -> tuple[Any, ...]:
    """What the native half reads; `tree`: the output's structure, else its own."""
    results: list[Any] = []
    values: list[Any] = []
    own = _tree_of(body, output, results, values)
    outputs = list(_outputs(tree or own, values, None))
    return describer.describe(body.nodes, results, tree or own, outputs)


def graph_of(
    description: tuple[Any, ...],
    constants: Sequence[torch.Tensor],
    generators: Sequence[torch.Generator] = (),
) -> Graph:
    """The native half of what was described, over these constants."""
    from ..backends.torch import graph

    keep = tuple(constants)
    capsule = graph(description, (keep, generators))
    return Graph(capsule, description[0], description[1], keep)


def _tree_of(body: Body, value: Any, results: list[Any], values: list[Any]) -> Any:
    """Tuples, lists and dicts of a graph's output, with its leaves in `results`, and
    what stood for them in the tracing in `values`."""
    if isinstance(value, dict):
        items = value.items()
        return "dict", [(k, _tree_of(body, v, results, values)) for k, v in items]
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return kind, [_tree_of(body, item, results, values) for item in value]
    operand = body.operand(value)
    traced = value.meta.get("val") if isinstance(value, fx.Node) else None
    if isinstance(operand, list):  # an operator with several results
        results.extend(operand)
        values.extend(traced if isinstance(traced, tuple) else [None] * len(operand))
        first = len(results) - len(operand)
        return "tuple", [("leaf", first + i) for i in range(len(operand))]
    results.append(operand)
    values.append(traced)
    return "leaf", len(results) - 1


def _outputs(
    tree: Any, values: list[Any], path: str | None
) -> Iterator[tuple[str | None, Any]]:
    """(name, tensor) of every output: logits, loss, states[0]."""
    kind, inside = tree
    if kind == "leaf":
        yield path, values[inside]
        return
    for i, item in enumerate(inside):
        if kind == "dict":
            key, item = item
            title = str(key) if path is None else f"{path}[{key!r}]".replace("'", '"')
        else:
            title = f"[{i}]" if path is None else f"{path}[{i}]"
        yield from _outputs(item, values, title)


def make_graph_model(
    graph: Graph, *, cls: type[Model] = Model, name: str | None = None, **common: Any
) -> Model:
    """A model of the graph that isn't started yet; `common` as for `make_model`."""
    from ..backends import load_backend

    return make_model(
        cls,
        "torch",
        load_backend("torch"),
        graph.capsule,
        name=name or graph.name,
        **common,
    )


__all__ = ["Graph", "description_of", "graph_of", "lower", "make_graph_model"]
