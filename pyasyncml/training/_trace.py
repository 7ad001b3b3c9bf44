"""Forward and backward pass of a module, traced into a graph of ATen operators.

The tracing runs the module's Python once, on tensors without data (torch's fake
tensors) whose first axis has a symbol for its size: nothing of the module changes, and
the graph is good for every number of rows that takes the same way through the Python.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, LoadError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Graph, Node

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass
class Passes:
    """What was traced.

    `graph` has placeholders for the batch, the parameters, the buffers and the
    constants, in this order; its results are not connected yet.
    """

    graph: Graph
    batch: list[Node]
    parameters: dict[str, Node]
    buffers: dict[str, Node]
    constants: dict[str, tuple[Node, Tensor]]
    loss: Node
    metrics: dict[str, Node]
    gradients: dict[str, Node]  # of those parameters that have one
    written: set[str]  # buffers that the forward pass writes to
    shapes: Shapes
    aligned: set[str]  # gradients laid out in memory as their parameter is


class Pair:
    """A module and its loss as one function of a batch. The loss may be a module with
    parameters and buffers of its own."""

    def __init__(self, module: torch.nn.Module, loss: Callable[..., Any]) -> None:
        import torch

        self.takes_module = _takes_module(loss)
        self.whole = torch.nn.Module()
        self.whole.module = module
        if isinstance(loss, torch.nn.Module):
            self.whole.loss = loss
        self.module, self.loss = module, loss
        # As they are: a Module's own `training` flag says nothing of its children's.
        self.whole.forward = self._forward

    def _forward(self, *batch: Any) -> Any:
        if self.takes_module:
            return self.loss(self.module, *batch)
        if len(batch) < 2:
            return self.loss(self.module(*batch))
        return self.loss(self.module(*batch[:-1]), batch[-1])

    @staticmethod
    def name(path: str) -> str:
        """A parameter's name as its owner knows it: `module.` is left out."""
        return path.removeprefix("module.")

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.whole.named_parameters())

    def buffers(self) -> dict[str, Tensor]:
        return dict(self.whole.named_buffers())


def _takes_module(loss: Callable[..., Any]) -> bool:
    import torch

    if isinstance(loss, torch.nn.Module):
        return False
    try:
        first = next(iter(inspect.signature(loss).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    return first is not None and first.name in ("module", "model")


class SizesNeeded(LoadError):
    """An operator asks for sizes that were meant to vary."""


class Shapes:
    """For which sizes of a batch a graph holds."""

    def __init__(
        self,
        environment: Any,
        symbols: Sequence[Sequence[Any]],
        dtypes: Sequence[torch.dtype],
    ) -> None:
        self._environment = environment
        self._symbols = symbols  # per tensor and axis: an int, or a symbol
        self._dtypes = dtypes
        self._known: dict[tuple[tuple[int, ...], ...], bool] = {}

    @property
    def dynamic(self) -> bool:
        """Whether any size may vary at all."""
        replaced = self._environment.replacements
        return any(
            not isinstance(size, int)
            and not getattr(replaced.get(size, size), "is_number", False)
            for sizes in self._symbols
            for size in sizes
        )

    def describe(self, i: int) -> str:
        """What tensor `i` of a batch is expected to be: `float32[rows, 8]`."""
        sizes = [
            str(size) if isinstance(size, int) else ("rows" if axis == 0 else "any")
            for axis, size in enumerate(self._symbols[i])
        ]
        return f"{str(self._dtypes[i]).removeprefix('torch.')}[{', '.join(sizes)}]"

    def fit(self, shapes: Sequence[Sequence[int]]) -> bool:
        key = tuple(map(tuple, shapes))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._evaluate(key)
        return known

    def _evaluate(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        if [len(shape) for shape in shapes] != [len(sizes) for sizes in self._symbols]:
            return False
        values: dict[Any, int] = {}
        for shape, sizes in zip(shapes, self._symbols, strict=True):
            for actual, size in zip(shape, sizes, strict=True):
                if isinstance(size, int):
                    if size != actual:
                        return False
                elif actual < 2 or values.setdefault(size, actual) != actual:
                    return False  # a symbol stands for two or more
        for symbol, meant in self._environment.replacements.items():
            if symbol in values and meant.subs(values) != values[symbol]:
                return False
        return all(
            bool(guard.expr.subs(values) == True)  # noqa: E712, sympy's true
            for guard in self._environment.guards
        )


def kind_of(tensor: Tensor) -> str:
    """`float32[32, 8]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def describe(tensors: Sequence[Tensor]) -> str:
    """`batch[0] float32[32, 8], …`, for messages."""
    return ", ".join(f"batch[{i}] {kind_of(t)}" for i, t in enumerate(tensors))


def trace(
    pair: Pair,
    batch: Sequence[Tensor],
    *,
    accumulate: int,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    dynamic: Sequence[frozenset[int]],
    wanted: frozenset[str],
) -> Passes:
    """Traces loss and gradients.

    `dynamic`: the axes of each batch tensor whose size may vary. `wanted`: the
    parameters whose gradients are; none: the loss alone. Raises `LoadError` where the
    Python can't be traced, `InputError` where the operators refuse the batch.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    from ..export._describe import home_of

    class Mode(FakeTensorMode):
        """Asks no questions about sizes for a convolution: which of its kernels is
        taken, and in what layout it answers, is decided in each run."""

        def dispatch(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in convolutions:
                with environment.suppress_guards():
                    return super().dispatch(func, types, args, kwargs)
            return super().dispatch(func, types, args, kwargs)

    aten = torch.ops.aten
    convolutions = {aten.convolution.default, aten.convolution_backward.default}
    environment = ShapeEnv()
    mode = Mode(shape_env=environment, allow_non_fake_inputs=True)
    home = home_of((*pair.parameters().values(), *pair.buffers().values()))

    def fake_input(tensor: Tensor, axes: frozenset[int]) -> Tensor:
        sizes = [
            DimDynamic.DYNAMIC if axis in axes else DimDynamic.STATIC
            for axis in range(tensor.dim())
        ]
        made: Tensor = mode.from_tensor(
            tensor.detach().to(home),  # where runs copy it to
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
        )
        return made

    inputs = [fake_input(t, axes) for t, axes in zip(batch, dynamic, strict=True)]
    symbols = [
        [size if isinstance(size, int) else size.node.expr for size in fake.shape]
        for fake in inputs
    ]
    parameters = pair.parameters()
    buffers = pair.buffers()
    fakes = {
        name: mode.from_tensor(p.detach(), static_shapes=True).requires_grad_(
            p.requires_grad
        )
        for name, p in parameters.items()
    }
    fake_buffers = {
        name: mode.from_tensor(b.detach(), static_shapes=True)
        for name, b in buffers.items()
    }
    trained = [n for n, p in parameters.items() if p.requires_grad and n in wanted]
    metric_names: list[str] = []
    versions: dict[str, int] = {}
    have_gradient: list[str] = []
    aligned: set[str] = set()

    def passes(*flat: Tensor) -> list[Tensor]:
        rows = list(flat[: len(batch)])
        state = dict(zip([*fakes, *fake_buffers], flat[len(batch) :], strict=True))
        before = {name: state[name]._version for name in fake_buffers}
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        leaves = [state[name] for name in trained]
        for part in _split(rows, accumulate):
            with autocast(), torch.set_grad_enabled(bool(leaves)):
                result = torch.func.functional_call(pair.whole, state, tuple(part))
            loss, more = _loss_and_metrics(result, differentiable=bool(leaves))
            if accumulate > 1:
                loss = loss / accumulate
                more = {name: value / accumulate for name, value in more.items()}
            total = loss if total is None else total + loss.detach()
            for name, value in more.items():
                metrics[name] = metrics[name] + value if name in metrics else value
            if not leaves:
                continue
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    gradients[name] = (
                        gradients[name] + gradient if name in gradients else gradient
                    )
        assert total is not None
        versions.update(
            (name, state[name]._version - before[name]) for name in fake_buffers
        )
        metric_names[:] = list(metrics)
        gradients = {name: gradients[name] for name in trained if name in gradients}
        have_gradient[:] = list(gradients)
        for name, gradient in gradients.items():
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"parameter {Pair.name(name)!r} has a sparse gradient, which isn't "
                    "supported: make its embedding with sparse=False"
                )
            if gradient.stride() == state[name].stride():
                aligned.add(name)
        return [
            total.detach(),
            *(m.detach().clone() for m in metrics.values()),
            *gradients.values(),
        ]

    with (
        _explained(batch),
        _unchanged(pair.whole),
        _without_mkldnn_lstm(pair.whole),
        _uncompiled(pair.whole),
    ):
        traced = make_fx(passes, tracing_mode="real", _allow_non_fake_inputs=True)(
            *inputs, *fakes.values(), *fake_buffers.values()
        )
    return _sorted_out(
        traced,
        len(batch),
        list(fakes),
        list(fake_buffers),
        metric_names,
        have_gradient,
        aligned,
        {name for name, bumps in versions.items() if bumps},
        Shapes(environment, symbols, [t.dtype for t in batch]),
    )


def _split(rows: list[Tensor], parts: int) -> Iterator[list[Tensor]]:
    """What torch.chunk gives for `parts` chunks, so that the number of rows stays a
    symbol. The caller has seen to it that there are as many chunks."""
    if parts == 1:
        yield rows
        return
    n = rows[0].shape[0]
    size = (n + parts - 1) // parts
    if not (parts - 1) * size < n:
        raise InputError(
            f"batch: {int(n)} rows don't make accumulate={parts} parts; "
            "torch.chunk would make fewer"
        )
    for i in range(parts):
        if i < parts - 1:
            yield [tensor.narrow(0, i * size, size) for tensor in rows]
        else:
            yield [tensor.narrow(0, i * size, n - i * size) for tensor in rows]


def _loss_and_metrics(
    result: Any, *, differentiable: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    import torch

    metrics: Any = {}
    loss = result
    if isinstance(result, tuple) and len(result) == 2:
        loss, metrics = result
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "loss: expected a tensor, or a tensor and a dict of metrics; "
            f"got a tuple with {type(metrics).__name__}"
        )
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"loss: expected a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"loss: expected a scalar, got shape {_sizes(loss)}; "
            "reduce it, with .mean() for one"
        )
    if not loss.dtype.is_floating_point:
        raise TypeError(f"loss: expected a floating-point scalar, got {loss.dtype}")
    if differentiable and not loss.requires_grad:
        raise ValueError(
            "loss: doesn't depend on any parameter that requires a gradient"
        )
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"metrics: expected str as names, got {name!r}")
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"metric {name!r}: expected a tensor, got {type(value).__name__}; a "
                "Python number would stay what it was when the step was traced"
            )
        if value.numel() != 1:
            raise ValueError(
                f"metric {name!r}: expected a scalar, got shape {_sizes(value)}"
            )
    return loss, {name: value.detach() for name, value in metrics.items()}


def _sizes(tensor: Tensor) -> str:
    """A shape in which symbols are the sizes of the example."""
    return str([int(size) for size in tensor.shape])


@contextlib.contextmanager
def _unchanged(module: torch.nn.Module) -> Iterator[None]:
    """Fake tensors that the module's Python kept in attributes are taken out again, and
    are an error: in every later step the attribute would not be set."""
    from torch._subclasses.fake_tensor import FakeTensor

    before = {id(m): dict(vars(m)) for m in module.modules()}
    try:
        yield
    finally:
        kept = ""
        for path, part in module.named_modules():
            held = before.get(id(part), {})
            for name, value in list(vars(part).items()):
                if isinstance(value, FakeTensor):
                    kept = f"{path}.{name}"
                    if name in held:
                        setattr(part, name, held[name])
                    else:
                        delattr(part, name)
        if kept and sys.exc_info()[0] is None:
            raise LoadError(
                f"the step keeps a tensor in the attribute {Pair.name(kept)!r}: it is "
                "traced once, so that the attribute wouldn't be set in later steps. "
                "Make it a buffer (register_buffer) and write into it with .copy_(), "
                "or return it from the loss as a metric"
            )


@contextlib.contextmanager
def _without_mkldnn_lstm(module: torch.nn.Module) -> Iterator[None]:
    """oneDNN's LSTM has a backward pass only where its forward pass ran in grad mode,
    which a graph doesn't: take ATen's own."""
    import torch

    if not any(isinstance(part, torch.nn.LSTM) for part in module.modules()):
        yield
        return
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextlib.contextmanager
def _uncompiled(module: torch.nn.Module) -> Iterator[None]:
    """What torch.compile made is traced as it was before."""
    if all(type(part).__name__ != "OptimizedModule" for part in module.modules()):
        yield
        return
    import torch._dynamo.config as dynamo

    refuses = dynamo.error_on_nested_fx_trace
    dynamo.error_on_nested_fx_trace = False
    try:
        yield
    finally:
        dynamo.error_on_nested_fx_trace = refuses


@contextlib.contextmanager
def _explained(batch: Sequence[Tensor]) -> Iterator[None]:
    """What goes wrong in tracing, in the user's terms."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    advice = (
        "the step is traced once into a graph, which can't follow Python's branches "
        "on the values of tensors. torch.where, masks or torch.clamp do without a "
        "branch; a number for people to see goes into the loss's metrics as a tensor"
    )
    # It writes errors to its log before it raises them.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except (LoadError, InputError):
        raise
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        GuardOnDataDependentSymNode,
    ) as error:
        what = "Python needs the value of a tensor here"
        if isinstance(error, DynamicOutputShapeException):
            what = "the shape of a result depends on values"
        raise LoadError(f"{source_line(error)}: {what}; {advice}") from error
    except UnsupportedOperatorException as error:
        raise LoadError(
            f"{source_line(error)}: the operator {error.func} can't be traced"
        ) from error
    except (RuntimeError, IndexError) as error:
        text = str(error)
        if "expected to contain only concrete integers" in text:
            raise SizesNeeded(source_line(error)) from error
        if "data-dependent" in text or "aten._local_scalar_dense" in text:
            raise LoadError(
                f"{source_line(error)}: Python needs the value of a tensor here; "
                f"{advice}"
            ) from error
        raise InputError(
            f"{source_line(error)}: {text.splitlines()[0] if text else error!r} "
            f"(with {describe(batch)})"
        ) from error
    finally:
        log.setLevel(level)


def source_line(error: BaseException) -> str:
    """The user's innermost line in an error's traceback, with its text."""
    import torch

    inner = os.path.dirname(os.path.abspath(torch.__file__))
    library = os.path.dirname(os.path.abspath(contextlib.__file__))
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if path.startswith("<") and not linecache.getline(path, line):
            continue
        if path.startswith((inner, _PACKAGE)):
            continue
        if path.startswith(library) and "site-packages" not in path:
            continue
        if f"{os.sep}sympy{os.sep}" in path:
            continue
        found = (path, line)
    if found is None:
        return "the loss"
    path, line = found
    text = linecache.getline(path, line).strip()
    return f"{path}:{line}" + (f" `{text}`" if text else "")


_BATCH_NORMS = {
    "native_batch_norm": (3, 4),
    "_native_batch_norm_legit": (3, 4),  # of devices that aren't torch's own
    "cudnn_batch_norm": (3, 4),
    "miopen_batch_norm": (3, 4),
    "_batch_norm_with_update": (3, 4),
}


def _sorted_out(
    traced: torch.fx.GraphModule,
    n_batch: int,
    parameters: list[str],
    buffers: list[str],
    metrics: list[str],
    gradients: list[str],
    aligned: set[str],
    written: set[str],
    shapes: Shapes,
) -> Passes:
    """The traced graph's nodes by what they are."""
    import torch

    graph: Graph = traced.graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    results = list(torch.utils._pytree.tree_leaves(output.args[0]))
    graph.erase_node(output)

    # Alias of a tensor that nothing differentiates: the tensor itself.
    plain = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in plain:
            source = node.args[0]
        elif (
            node.op == "call_function"
            and node.target is torch.ops.aten.t.default
            and node.args[0].target is torch.ops.aten.t.default
        ):
            source = node.args[0].args[0]  # transposed twice
        else:
            source = None
        if source is not None:
            results = [source if r is node else r for r in results]
            node.replace_all_uses_with(source)
            graph.erase_node(node)

    constants: dict[str, tuple[Node, Tensor]] = {}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(traced, str(node.target))
        with graph.inserting_before(first):
            place = graph.placeholder(f"constant_{len(constants)}")
        place.meta.update(node.meta)
        node.replace_all_uses_with(place)
        results = [place if r is node else r for r in results]
        if node is first:
            first = node.next
        graph.erase_node(node)
        constants[str(place.target)] = (place, value)

    by_name = dict(zip([*parameters, *buffers], places[n_batch:], strict=True))
    for node in graph.nodes:
        packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        for i in _BATCH_NORMS.get(packet, ()):
            written |= {b for b in buffers if node.args[i] is by_name[b]}
    rest = iter(results)
    return Passes(
        graph=graph,
        batch=places[:n_batch],
        parameters={name: by_name[name] for name in parameters},
        buffers={name: by_name[name] for name in buffers},
        constants=constants,
        loss=next(rest),
        metrics={name: next(rest) for name in metrics},
        gradients={name: next(rest) for name in gradients},
        written=written,
        shapes=shapes,
        aligned=aligned,
    )
