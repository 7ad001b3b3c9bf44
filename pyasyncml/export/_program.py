"""From a `torch.export` program to a graph that runs without Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from ..errors import LoadError
from ._describe import Argument, Describer, Slot, Symbols, fixed_size
from ._lower import Graph, description_of, graph_of


@dataclass(frozen=True)
class Names:
    """What people call a program's inputs and axes, since the program doesn't say.

    `inputs`: of the positional arguments, in order. `axes`: by the way to the tensor
    (``batch["ids"]``), the names of its axes; those of one name must be equal.
    """

    inputs: tuple[str, ...] = ()
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Unflatten:
    """Makes dataclasses and whatever else pytree knows of the outputs."""

    spec: Any

    def __call__(self, leaves: Any) -> Any:
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class Served:
    """A graph, and what makes the module's own structure of its flat outputs.

    `finish` is None where tuples, lists and dicts, which the native half makes, are
    all there is. `structure` says it in words.
    """

    graph: Graph
    finish: Callable[[Any], Any] | None
    structure: str
    #: Of every input tensor, by the way to it; None: may vary.
    shapes: Mapping[str, tuple[int | None, ...]]


@dataclass(frozen=True)
class Described:
    """A program as the native half reads it, and what `Served` has of it."""

    description: tuple[Any, ...]
    constants: list[torch.Tensor]
    finish: Unflatten | None
    shapes: Mapping[str, tuple[int | None, ...]]


def serve(program: ExportedProgram, name: str, names: Names) -> Served:
    """The program's graph, over the very tensors that it holds. Raises `LoadError`."""
    found = describe(program, name, names)
    structure = "" if found.finish is None else str(found.finish.spec)
    graph = graph_of(found.description, found.constants)
    return Served(graph, found.finish, structure, found.shapes)


def describe(program: ExportedProgram, name: str, names: Names) -> Described:
    """Raises `LoadError` that names what can't run without Python, with its line."""
    symbols = Symbols(ranges=program.range_constraints)
    describer = Describer(name, symbols=symbols)
    slots: dict[fx.Node, Any] = {}
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    signature = program.graph_signature
    state = {**program.constants, **program.state_dict}
    inputs: list[fx.Node] = []
    places: dict[str, int] = {}  # of buffers, by their names
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind in (
            InputKind.PARAMETER,
            InputKind.BUFFER,
            InputKind.CONSTANT_TENSOR,
        ):
            assert spec.target is not None
            slots[node] = describer.constant(state[spec.target])
            places[spec.target] = slots[node]
        else:
            raise LoadError(
                f"the program holds a {spec.kind.name.lower()} ({spec.target}); only "
                "tensors can be served"
            )
    _describe_inputs(describer, program, inputs, slots, names)
    body = describer.body(program.graph, program.graph_module, slots)
    results: list[Any] = []
    for value, out in zip(body.output, signature.output_specs, strict=True):
        if out.kind is OutputKind.USER_OUTPUT:
            results.append(value)
        elif out.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            # After everything else: a run that fails leaves the state alone.
            assert out.target is not None
            body.call(
                value,
                torch.ops.aten.copy_.default,
                [Slot(places[out.target]), value],
            )
        elif out.kind is not OutputKind.USER_INPUT_MUTATION:
            raise LoadError(f"the program gives a {out.kind.name.lower()}")
        # A caller's input is written to in a copy of ours, which nobody sees.
    spec = program.call_spec.out_spec
    tree = _native_tree(spec, iter(range(len(results))))
    unflatten = None
    if tree is None:
        tree = ("tuple", [("leaf", i) for i in range(len(results))])
        unflatten = Unflatten(spec)
    shapes = {
        leaf.path: tuple(fixed_size(size) for size in leaf.value.shape)
        for leaf in describer.leaves
        if leaf.kind == "tensor"
    }
    description = description_of(describer, body, results, tree)
    return Described(description, describer.constants, unflatten, shapes)


def _native_tree(spec: Any, leaves: Any) -> Any:
    """The tree that the native half builds; None: it holds something else."""
    if spec.is_leaf():
        return ("leaf", next(leaves))
    children = [_native_tree(child, leaves) for child in spec.children()]
    if any(child is None for child in children):
        return None
    if spec.type is tuple:
        return ("tuple", children)
    if spec.type in (list, immutable_list):
        return ("list", children)
    keys = spec.context
    if (
        spec.type in (dict, immutable_dict)
        and isinstance(keys, list)
        and len({type(key) for key in keys}) <= 1
        and all(type(key) in (str, int) for key in keys)
    ):
        return ("dict", list(zip(keys, children, strict=True)))
    return None


def _describe_inputs(
    describer: Describer,
    program: ExportedProgram,
    nodes: Sequence[fx.Node],
    slots: dict[fx.Node, Any],
    names: Names,
) -> None:
    spec = program.call_spec.in_spec
    assert spec is not None
    args, kwargs = spec.children()
    rest = iter(enumerate(nodes))

    def leaf(path: str, _: Any) -> Any:
        i, node = next(rest)
        found = describer.leaf(path, node.meta.get("val"))
        found.slot = slots[node] = describer.slot()
        if found.kind == "tensor":
            _name_axes(describer.symbols, found.value, names.axes.get(path, {}), path)
        return ("leaf", i)

    titles = [*args.children(), *kwargs.children()]
    keywords = list(kwargs.context or [])
    for i, child in enumerate(titles):
        first = len(describer.leaves)
        if i >= len(args.children()):
            title = keywords[i - len(args.children())]
        elif i < len(names.inputs):
            title = names.inputs[i]
        else:  # export names its placeholders after the arguments
            title = nodes[first].name if child.is_leaf() else f"input_{i}"
        tree = tree_of(child, title, leaf)
        fixed = all(found.kind == "fixed" for found in describer.leaves[first:])
        kind = tree[0]
        if kind == "leaf":
            only = describer.leaves[first]
            kind = f"{only.value!r} alone" if fixed else only.kind.title()
        describer.arguments.append(Argument(title, kind, tree, fixed))


def tree_of(spec: Any, path: str, leaf: Callable[[str, Any], Any]) -> Any:
    """A tree of inputs from a `pytree` spec. Raises `LoadError`."""
    if spec.is_leaf():
        return leaf(path, spec)
    children = spec.children()
    if spec.type in (tuple, list, immutable_list):
        kind = "tuple" if spec.type is tuple else "list"
        return kind, [
            tree_of(child, f"{path}[{i}]", leaf) for i, child in enumerate(children)
        ]
    if spec.type in (dict, immutable_dict):
        return "dict", [
            (key, tree_of(child, f"{path}[{key!r}]".replace("'", '"'), leaf))
            for key, child in zip(spec.context, children, strict=True)
        ]
    raise LoadError(
        f"input '{path}' is a {spec.type.__name__}: inputs are tensors, numbers, "
        "strings and None, and tuples, lists and dicts of them"
    )


def _name_axes(
    symbols: Symbols, tensor: torch.Tensor, axes: Mapping[int, str], path: str
) -> None:
    """Gives the symbols of a tensor's axes their names, and one symbol a name."""
    for axis, name in axes.items():
        size = tensor.shape[axis]
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
            symbols.name(size.node.expr, name)


def argument_names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """What a function calls its first positional arguments: *args are args_0, …"""
    names: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            names.append(parameter.name)
    return tuple(names[:count])
