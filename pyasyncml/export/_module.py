"""From a live `torch.nn.Module` to a `torch.export` program."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from .._tracing import alone
from ..errors import LoadError
from ._describe import fixed_size, home_of
from ._program import Names, argument_names
from ._recurrent import whole_recurrent_layers

#: {"input": {axis: "name"}}, or torch.export's dynamic_shapes.
Dynamic = Any


class _Entry(torch.nn.Module):
    """Another method of a module than forward, as a module."""

    def __init__(self, module: torch.nn.Module, entry: str) -> None:
        super().__init__()
        self.module = module
        self.entry = entry
        self.train(module.training)

    def forward(self, *args: Any) -> Any:
        return getattr(self.module, self.entry)(*args)


@alone
def export_module(
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    dynamic: Dynamic = None,
    *,
    entry: str | None = None,
    batch_axes: Mapping[str | int, int] | None = None,
) -> tuple[ExportedProgram, Names]:
    """The module as a program, in the mode (train or eval) it is in, and its names.

    Axis 0 of all tensors is taken for the batch where the example inputs agree about
    it, and may vary where the program allows it (`batch_axes`: another axis, by input);
    `dynamic` names further axes. It holds the module's own tensors. Raises `LoadError`.
    """
    function = module.forward if entry is None else getattr(module, entry)
    names = argument_names(function, len(inputs))
    if len(names) < len(inputs):
        raise LoadError(
            f"inputs: {len(inputs)} examples, but the module takes {len(names)}"
        )
    home = home_of((*module.parameters(), *module.buffers()))
    args = pytree.tree_map_only(_is_array, torch.as_tensor, inputs)
    # Where runs copy them to, wherever they are.
    args = pytree.tree_map_only(torch.Tensor, lambda t: t.to(home), args)
    args = _apart(args)
    tensors = {
        path: leaf
        for path, leaf in _paths(names, args)
        if isinstance(leaf, torch.Tensor)
    }
    static: tuple[Any, ...] | None = None
    if is_torch_form(dynamic):
        shapes = _by_name(dynamic, names, args)
        axes: dict[str, dict[int, str]] = {}
    else:
        axes = _named_axes(tensors, names, dynamic)
        for path, axis in _batch_axes(tensors, names, batch_axes or {}).items():
            axes.setdefault(path, {}).setdefault(axis, "batch")
        example, args = args, _grown(names, args, axes)
        shapes = _shapes(names, args, axes)
        if dynamic is None and not _same_sizes(example, args):
            static = example
    target = module if entry is None else _Entry(module, entry)
    with _quiet(), whole_recurrent_layers():
        program = _export(target, args, shapes, static)
    _check_named(program, names, args, axes, dynamic)
    return program, Names(names, axes)


def _apart(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same, with copies of tensors that come more than once: torch.export would
    take one input for all of them."""
    seen: set[int] = set()

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in seen:
            return tensor.clone()
        seen.add(id(tensor))
        return tensor

    apart_args: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, apart, args)
    return apart_args


def _export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    shapes: Any,
    static: tuple[Any, ...] | None,
) -> ExportedProgram:
    """`static`: to be tried with fixed sizes where `args` can't be exported."""
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, args, dynamic_shapes=shapes, strict=False
            )
        whole: ExportedProgram = program.run_decompositions({})
        return whole
    except Exception as error:
        if static is not None:
            with contextlib.suppress(LoadError):
                return _export(module, static, None, None)
        name = type(getattr(module, "module", module)).__name__
        raise LoadError(
            f"{name} can't be exported: {reason_of(error)}; "
            'backend="python" serves it as it is, and call(module, …) runs it'
        ) from error


def is_torch_form(dynamic: Dynamic) -> bool:
    """Whether it is torch.export's dynamic_shapes, rather than axes with names."""
    if dynamic is None:
        return False
    if not isinstance(dynamic, Mapping):
        return True
    leaves = [
        value
        for axes in dynamic.values()
        for value in (axes.values() if isinstance(axes, Mapping) else [axes])
    ]
    return not all(isinstance(leaf, str) for leaf in leaves)


def _by_name(dynamic: Any, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
    """By name, or by position: inputs that are left out are static."""
    if isinstance(dynamic, Mapping):
        unknown = [name for name in dynamic if name not in names]
        if unknown:
            raise LoadError(
                f"dynamic: there is no input {unknown[0]!r}; there are "
                f"{', '.join(map(repr, names))}"
            )
        return tuple(dynamic.get(name) for name in names)
    return tuple(dynamic)


def _is_array(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and (
        hasattr(value, "__array__") or hasattr(value, "__dlpack__")
    )


def _paths(names: tuple[str, ...], args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """(x, leaf), (batch["mask"], leaf), … in pytree's order."""

    def walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(f"{path}[{key!r}]".replace("'", '"'), item)
        elif hasattr(value, "_fields"):
            raise LoadError(
                f"input '{path}' is a {type(value).__name__}: inputs are tensors, "
                "numbers, strings and None, and tuples, lists and dicts of them"
            )
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                yield from walk(f"{path}[{i}]", item)
        else:
            yield path, value

    for name, arg in zip(names, args, strict=True):
        yield from walk(name, arg)


def _rebuilt(
    names: tuple[str, ...], args: tuple[Any, ...], leaves: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The same structure with other leaves, None where there is none."""

    def walk(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: walk(f"{path}[{key!r}]".replace("'", '"'), item)
                for key, item in value.items()
            }
        if isinstance(value, (tuple, list)):
            return type(value)(
                [walk(f"{path}[{i}]", item) for i, item in enumerate(value)]
            )
        return leaves.get(path)

    return tuple(walk(name, arg) for name, arg in zip(names, args, strict=True))


def _top(path: str) -> str:
    return path.partition("[")[0]


def _named_axes(
    tensors: Mapping[str, torch.Tensor], names: tuple[str, ...], dynamic: Any
) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {}
    for place, named in (dynamic or {}).items():
        paths = [
            path for path in tensors if path == place or _top(path) == place
        ]  # batch["mask"], or all of batch
        if isinstance(place, int) and 0 <= place < len(names):
            paths = [path for path in tensors if _top(path) == names[place]]
        if not paths:
            raise LoadError(
                f"dynamic: there is no input {place!r}; there are "
                f"{', '.join(map(repr, tensors))}"
            )
        for path in paths:
            for axis, name in named.items():
                rank = tensors[path].dim()
                if not isinstance(axis, int) or not -rank <= axis < rank:
                    raise LoadError(
                        f"dynamic: input '{path}' has {rank} axes, none is {axis!r}"
                    )
                axes.setdefault(path, {})[axis % rank] = name
    return axes


def _batch_axes(
    tensors: Mapping[str, torch.Tensor],
    names: tuple[str, ...],
    given: Mapping[str | int, int],
) -> dict[str, int]:
    """The axis of each tensor that is the batch; empty: they don't agree."""
    axes = {}
    for path, tensor in tensors.items():
        top = _top(path)
        axis = given.get(top, given.get(names.index(top), 0))
        if tensor.dim() > axis:
            axes[path] = axis
    sizes = {tensors[path].shape[axis] for path, axis in axes.items()}
    return axes if len(sizes) == 1 and 0 not in sizes else {}


def _grown(
    names: tuple[str, ...], args: tuple[Any, ...], axes: Mapping[str, Mapping[int, str]]
) -> tuple[Any, ...]:
    """Sizes of 1 that may vary, doubled: export would take them for constants."""
    leaves: dict[str, Any] = {}
    for path, leaf in _paths(names, args):
        for axis in axes.get(path, {}):
            if leaf.shape[axis] == 1:
                leaf = torch.cat([leaf, leaf], axis)
        leaves[path] = leaf
    return _rebuilt(names, args, leaves)


def _shapes(
    names: tuple[str, ...], args: tuple[Any, ...], axes: Mapping[str, Mapping[int, str]]
) -> Any:
    return _rebuilt(
        names,
        args,
        {path: dict.fromkeys(named, Dim.AUTO) for path, named in axes.items()},
    )


def _same_sizes(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    sizes = [
        [leaf.shape for leaf in pytree.tree_leaves(args) if hasattr(leaf, "shape")]
        for args in (one, other)
    ]
    return sizes[0] == sizes[1]


def _check_named(
    program: ExportedProgram,
    names: tuple[str, ...],
    args: tuple[Any, ...],
    axes: Mapping[str, Mapping[int, str]],
    dynamic: Any,
) -> None:
    """What the user named must have become dynamic; the batch need not."""
    if dynamic is None or is_torch_form(dynamic):
        return
    wanted = {name for named in dynamic.values() for name in named.values()}
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    specs = program.graph_signature.input_specs
    inputs = [
        node
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind is InputKind.USER_INPUT
    ]
    for (path, _), node in zip(_paths(names, args), inputs, strict=True):
        for axis, name in axes.get(path, {}).items():
            size = fixed_size(node.meta["val"].shape[axis])
            if name in wanted and size is not None:
                raise LoadError(
                    f"dynamic: axis {axis} of input '{path}' ({name!r}) can't vary: "
                    f"the program works for {size} alone"
                )


def reason_of(error: BaseException) -> str:
    """What export said, in a line, with the line of the user's source."""
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    place = ""
    chain: BaseException | None = error
    while chain is not None and not place:
        for frame in reversed(traceback.extract_tb(chain.__traceback__)):
            if (
                f"{os.sep}torch{os.sep}" not in frame.filename
                and f"{os.sep}pyasyncml{os.sep}" not in frame.filename
                and not frame.filename.startswith("<")
            ):
                place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
                place += f": {frame.line}" if frame.line else ""
                break
        chain = chain.__cause__ or chain.__context__
    kind = type(error).__name__
    first = first.rstrip(".")
    return f"{kind}: {first}" + (f" ({place})" if place else "")


class _Elsewhere(logging.Filter):
    """Lets pass what other threads log."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export warns and logs about itself; what matters comes back as an error."""
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.startswith("torch.")
    ]
    elsewhere = _Elsewhere()
    for logger in loggers:
        logger.addFilter(elsewhere)
    # It prints the graph so far, too, where an export fails.
    trace: Any = importlib.import_module("torch.export._trace")
    trace.print = lambda *args, **kwargs: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del trace.print
        for logger in loggers:
            logger.removeFilter(elsewhere)
