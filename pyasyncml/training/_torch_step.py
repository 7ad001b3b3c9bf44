"""A whole training step of a PyTorch module as one graph.

Forward pass, loss, backward pass, clipping and the optimizer's update are traced once;
running the graph trains the module's own parameters and buffers and the optimizer's own
state in place. No Python runs in a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import _optimizers
from ._optimizers import Bucket, Emitter
from ._trace import Pair, Passes, Shapes, SizesNeeded, alone, describe, kind_of, trace

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Node


@dataclass
class TracedStep:
    """A training step as a graph over live tensors.

    The contract with who runs it:

    - `graph_module` is a `torch.fx.GraphModule`. Its placeholders are first the inputs,
      in the order of `input_names`, then those named in `bound`. Run it without
      gradients (`torch.no_grad`, or the native runner's mode).
    - The inputs are `len(columns)` 0-d float64 tensors on the CPU, then the batch's
      tensors. What the 0-d tensors hold in each step, learning rates and what else of
      the optimizer changes from step to step, is a row of `Schedule.table`
      (_schedule.py): `columns` names them, `lr[0]` is the learning rate of group 0.
    - It returns a tuple of tensors of one element, named by `outputs`: the loss (with
      `accumulate`, the mean of its parts), then the loss's metrics.
    - `bound`: placeholder name → the live tensor that it stands for: parameters,
      buffers, optimizer state, constants. The graph reads and writes these in place;
      they need to be bound anew when `refresh()` says so. Everything that can fail
      comes before the first write: a step that raises has changed nothing.
    - Operators that draw random numbers have `generator=None` in the graph: the runner
      gives them `generator`. The global one is never touched.
    - One graph serves all batches for which `fits(shapes)`; `variant(batch)` gives a
      step for any other batch, over the same live tensors (itself where it fits).
    - Before a run: `refresh()`. After native steps, before Python goes on with the
      module: `sync(steps)`. Not thread-safe, no asyncio; call these where no step runs.
    """

    graph_module: torch.fx.GraphModule
    bound: dict[str, Tensor]
    input_names: tuple[str, ...]
    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    buckets: list[Bucket]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator | None
    _shapes: Shapes
    _request: _Request
    _sources: dict[str, tuple[str, ...]]
    _variants: list[TracedStep] = field(default_factory=list)
    _marks: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def batch_names(self) -> tuple[str, ...]:
        return self.input_names[len(self.columns) :]

    def fits(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether this graph holds for a batch of these shapes."""
        return self._shapes.fit(shapes)

    def expects(self, i: int) -> str:
        """`float32[rows, 8]`: what tensor `i` of a batch has to be."""
        return self._shapes.describe(i)

    def check(self, batch: Sequence[Tensor]) -> None:
        """Raises `InputError` for a batch with another number of tensors, or tensors of
        another dtype or rank, than the step was traced with."""
        example = self._request.batch
        if len(batch) != len(example):
            raise InputError(
                f"batch: expected {len(example)} tensors, got {len(batch)}"
            )
        for i, (given, wanted) in enumerate(zip(batch, example, strict=True)):
            if given.dtype != wanted.dtype or given.dim() != wanted.dim():
                raise InputError(
                    f"batch[{i}]: expected {self.expects(i)}, got {kind_of(given)}"
                )

    @alone
    def variant(self, batch: Sequence[Tensor]) -> TracedStep:
        """The step for a batch of these shapes: itself, one traced before, or one
        traced now (a tenth of a second to a second).

        An axis whose size isn't what it was in any step so far may vary from then on,
        so that batches of many lengths soon have one graph. A step that holds for one
        size only is traced for each, with a warning. Raises as `trace_step`.
        """
        self.check(batch)
        shapes = [tuple(tensor.shape) for tensor in batch]
        for step in (self, *self._variants):
            if step.fits(shapes):
                return step
        made = self._request.again(batch, self)
        self._variants.append(made)
        if len(self._variants) in (4, 32) and not made._shapes.dynamic:
            warnings.warn(
                f"the step has been traced {len(self._variants) + 1} times, since it "
                "holds for batches of one size only: its Python asks for the size. "
                "Batches of one size (drop the last, smaller one) avoid that",
                RuntimeWarning,
                stacklevel=2,
            )
        return made

    def refresh(self) -> bool:
        """Looks the live tensors up again, and what the optimizer has been set to.

        Returns whether something has to be bound anew (`bound` is then up to date): a
        state_dict was loaded into the optimizer, or parameters were replaced. Raises
        `ValueError` where the graph no longer fits: a parameter changed its size or
        dtype, or it is `outdated`. Trace again then.
        """
        if changed := self.outdated():
            raise ValueError(f"{changed} since the step was traced: trace it again")
        owners = _Owners(self._request.pair, self.optimizer)
        for bucket in self.buckets:
            bucket.initialise(self.optimizer)
            bucket.taken(self.optimizer)
        stale = False
        for name, source in self._sources.items():
            tensor = owners.find(source)
            then = self.bound[name]
            if (
                tensor.shape != then.shape
                or tensor.dtype != then.dtype
                or (tensor.device != then.device)
            ):
                raise ValueError(
                    f"{source[0]} {Pair.name(source[1])!r} was {kind_of(then)} on "
                    f"{then.device} when the step was traced and is {kind_of(tensor)} "
                    f"on {tensor.device}: trace the step again"
                )
            mark = _mark(tensor)
            if mark != self._marks.get(name):
                self.bound[name], self._marks[name] = tensor, mark
                stale = True
        for step in self._variants:
            stale = step.refresh() or stale
        return stale

    def outdated(self) -> str:
        """What has changed that is part of the graph, in words; empty: nothing. The
        optimizer's hyperparameters other than those in `varying`, which modules are in
        training mode, which parameters require a gradient."""
        request = self._request
        if request.quickly() == request.quickly_then:
            return ""
        before = request.settings
        now = _settings(self._request.pair, self.optimizer, self._request.varying)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(changed[:5]) + " changed" if changed else ""

    def fixed(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """What an optimizer's groups are set to, as far as it is part of the graph."""
        return _fixed(optimizer, self._request.varying)

    def sync(self, steps: int = 1) -> None:
        """After `steps` native steps: autograd learns that the parameters were written
        to, so that a graph made before can't be run backwards with wrong values."""
        import torch

        if steps <= 0:
            return
        for bucket in self.buckets:
            bucket.stepped()
        torch.autograd.graph.increment_version(
            [t for name, t in self.bound.items() if name in self._marks]
        )

    def close(self) -> None:
        """Lets go of the module and the optimizer. State that no step has used goes."""
        for bucket in self.buckets:
            bucket.undo(self.optimizer)
        self.bound.clear()
        self._variants.clear()
        self._sources.clear()


@alone
def trace_step(
    module: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    example_batch: Sequence[Tensor],
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | torch.autocast | None = None,
    generator: torch.Generator | None = None,
    dynamic_batch: bool = True,
    varying: frozenset[str] = frozenset({"lr"}),
) -> TracedStep:
    """Traces a training step: `loss(module(*batch[:-1]), batch[-1])`, its gradients and
    `optimizer`'s update, in the module's present mode (train or eval).

    A loss whose first parameter is named `module` or `model` is called as
    `loss(module, *batch)`. It returns a scalar, or a scalar and a dict of scalar
    metrics. A loss that is a module may have parameters, which are trained where the
    optimizer has them, and buffers.

    `example_batch`: tensors whose first axis counts rows; with `dynamic_batch` the
    graph is good for other numbers of rows. `clip_norm`:
    `torch.nn.utils.clip_grad_norm_`'s `max_norm`. `accumulate`: the batch is cut into
    as many parts as `torch.chunk` makes, their gradients are summed as `(loss /
    accumulate).backward()` does. `autocast`: a dtype, or a `torch.autocast` whose
    settings are taken, for the forward pass and the loss. `varying`: hyperparameters
    that are inputs of the step rather than part of the graph
    (`_schedule.varying(scheduler)`).

    Nothing of the module is run or changed, but for the optimizer's state, which is
    made as its first step would. Raises `TypeError` and `ValueError` for arguments that
    aren't supported, `LoadError` for Python that can't be traced, with the line, and
    `InputError` for a batch that doesn't fit the module.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module: expected a torch.nn.Module, got {type(module).__name__}"
        )
    check_options(loss, clip_norm, accumulate)
    batch = tuple(example_batch)
    for i, tensor in enumerate(batch):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"batch[{i}]: expected a tensor, got {type(tensor).__name__}"
            )
        if tensor.dim() == 0 and accumulate > 1:
            raise InputError(f"batch[{i}]: has no rows to accumulate over")
        if tensor.dim() > 0 and tensor.shape[0] == 0:
            raise InputError(f"batch[{i}]: is empty, shape {list(tensor.shape)}")
    if not batch:
        raise InputError("batch: is empty; expected one tensor or more")
    pair = Pair(module, loss)
    rules = _optimizers.rules_of(optimizer)
    _check_parameters(pair, optimizer)
    _check_hooks(pair)
    request = _Request(
        pair=pair,
        optimizer=optimizer,
        rules=rules,
        batch=batch,
        clip_norm=clip_norm,
        accumulate=accumulate,
        autocast=_autocast(autocast, pair),
        generator=generator,
        varying=varying | {"lr"},
        dynamic=[
            frozenset({0} if dynamic_batch and t.dim() > 0 else ()) for t in batch
        ],
        grows=dynamic_batch,
    )
    request.settle()
    return request.trace()


def check_options(
    loss: Callable[..., Any], clip_norm: float | None, accumulate: int
) -> None:
    """Raises `TypeError` and `ValueError` for those that can't be."""
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if not isinstance(accumulate, int) or isinstance(accumulate, bool):
        raise TypeError(f"accumulate: expected an int, got {accumulate!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate: expected 1 or more, got {accumulate}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: expected a positive number, got {clip_norm!r}")


@dataclass
class _Request:
    """What was asked for: enough to trace it again."""

    pair: Pair
    optimizer: torch.optim.Optimizer
    rules: list[_optimizers.Rule]
    batch: tuple[Tensor, ...]
    clip_norm: float | None
    accumulate: int
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    generator: torch.Generator | None
    varying: frozenset[str]
    dynamic: list[frozenset[int]]
    grows: bool
    settings: dict[str, Any] = field(default_factory=dict)
    quickly_then: Any = None
    _modules: list[torch.nn.Module] = field(default_factory=list)

    def settle(self) -> None:
        """Notes what everything is set to."""
        self.settings = _settings(self.pair, self.optimizer, self.varying)
        self._modules = list(self.pair.whole.modules())[1:]
        self.quickly_then = self.quickly()

    def quickly(self) -> Any:
        """The same as `settings`, for comparison alone."""
        groups = self.optimizer.param_groups
        return (
            [module.training for module in self._modules],
            [
                parameter.requires_grad
                for module in self._modules
                for parameter in module._parameters.values()
                if parameter is not None
            ],
            _fixed(self.optimizer, self.varying),
            [len(group["params"]) for group in groups],
        )

    def again(self, batch: Sequence[Tensor], first: TracedStep) -> TracedStep:
        """A step for a batch of other shapes."""
        if self.grows:
            self.dynamic = [
                axes
                | {
                    axis
                    for axis, (now, then) in enumerate(
                        zip(tensor.shape, example.shape, strict=True)
                    )
                    if now != then
                }
                for axes, tensor, example in zip(
                    self.dynamic, batch, self.batch, strict=True
                )
            ]
        request = dataclasses.replace(self, batch=tuple(batch))
        rows = batch[0].shape[0] if batch[0].dim() else 1
        parts = -(-rows // -(-rows // self.accumulate))
        made = request.trace(first.buckets, parts)
        if made.columns != first.columns or made.outputs != first.outputs:
            raise InputError(
                "batch: with these shapes the loss gives other metrics, or trains "
                f"other parameters, than before ({describe(batch)})"
            )
        return made

    def trace(
        self, buckets: list[Bucket] | None = None, parts: int | None = None
    ) -> TracedStep:
        options: dict[str, Any] = {
            "accumulate": self.accumulate if parts is None else parts,
            "autocast": self.autocast,
            "wanted": self._wanted(),
        }
        try:
            passes = trace(self.pair, self.batch, dynamic=self.dynamic, **options)
        except SizesNeeded:  # a graph for each size then
            self.dynamic, self.grows = [frozenset()] * len(self.batch), False
            passes = trace(self.pair, self.batch, dynamic=self.dynamic, **options)
        if buckets is None:
            buckets = self._buckets(passes)
        builder = _Builder(self, passes, buckets)
        graph_module = builder.build()
        bound = {
            name: builder.owners.find(source)
            for name, source in builder.sources.items()
        }
        marks = {name: _mark(tensor) for name, tensor in bound.items()}
        bound.update(
            (node.name, tensor)
            for node, tensor in passes.constants.values()
            if node.name in builder.kept
        )
        return TracedStep(
            graph_module=graph_module,
            bound=bound,
            input_names=tuple(builder.inputs),
            columns=tuple(
                f"{column}[{i}]" for i, b in enumerate(buckets) for column in b.columns
            ),
            outputs=("loss", *passes.metrics),
            buckets=buckets,
            optimizer=self.optimizer,
            generator=self.generator,
            _shapes=passes.shapes,
            _request=self,
            _sources=builder.sources,
            _marks=marks,
        )

    def _wanted(self) -> frozenset[str]:
        """The parameters whose gradients are needed: the optimizer's, and where they
        are clipped all, as in `clip_grad_norm_(module.parameters(), …)`."""
        parameters = self.pair.parameters()
        if self.clip_norm is not None:
            return frozenset(parameters)
        trained = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
        return frozenset(n for n, p in parameters.items() if id(p) in trained)

    def _buckets(self, passes: Passes) -> list[Bucket]:
        """The parameters that are trained, by what their update has in common."""
        names = {id(p): name for name, p in self.pair.parameters().items()}
        found: dict[tuple[Any, ...], Bucket] = {}
        for i, (rule, group) in enumerate(
            zip(self.rules, self.optimizer.param_groups, strict=True)
        ):
            for member, parameter in enumerate(group["params"]):
                if names[id(parameter)] not in passes.gradients:
                    continue  # as torch.optim does with a parameter without gradient
                taken = _optimizers.steps_taken(self.optimizer, parameter)
                key = (i, taken, parameter.dtype, parameter.device)
                if key not in found:
                    found[key] = Bucket(i, rule, [], rule.columns(self.varying))
                found[key].members.append(member)
        for bucket in found.values():
            bucket.initialise(self.optimizer)
        if not found:
            raise ValueError("optimizer: none of its parameters has a gradient")
        return list(found.values())


def _settings(
    pair: Pair, optimizer: torch.optim.Optimizer, varying: frozenset[str]
) -> dict[str, Any]:
    """All that is part of the graph and that people change, by what they call it."""
    settings: dict[str, Any] = {}
    for i, group in enumerate(_fixed(optimizer, varying)):
        for key, value in group.items():
            settings[f"optimizer: {key!r} of parameter group {i}"] = value
    for i, group in enumerate(optimizer.param_groups):
        settings[f"optimizer: the parameters of group {i}"] = len(group["params"])
    for path, part in pair.whole.named_modules():
        if path:
            settings[f"the mode of {Pair.name(path)!r}"] = part.training
    for name, parameter in pair.parameters().items():
        settings[f"requires_grad of {Pair.name(name)!r}"] = parameter.requires_grad
    return settings


def _fixed(
    optimizer: torch.optim.Optimizer, varying: frozenset[str]
) -> list[dict[str, Any]]:
    return [
        {
            key: tuple(map(float, value)) if key == "betas" else value
            for key, value in group.items()
            if key not in varying
            and key not in ("params", "param_names", "foreach")
            # What schedulers note down for themselves.
            and not key.startswith(("initial_", "max_", "min_", "base_", "swa_"))
        }
        for group in optimizer.param_groups
    ]


class _Owners:
    """Where live tensors are found by name."""

    def __init__(self, pair: Pair, optimizer: torch.optim.Optimizer) -> None:
        self.parameters = pair.parameters()
        self.buffers = pair.buffers()
        self.optimizer = optimizer

    def find(self, source: tuple[str, ...]) -> Tensor:
        kind, name, *key = source
        try:
            if kind == "buffer":
                return self.buffers[name]
            parameter = self.parameters[name]
            if kind == "parameter":
                return parameter
            state: Tensor = self.optimizer.state[parameter][key[0]]
            return state
        except KeyError:
            raise ValueError(
                f"{kind} {Pair.name(name)} is gone: trace the step again"
            ) from None


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """Changes with the memory that a tensor stands for."""
    return (id(tensor), tensor.data_ptr(), tensor.stride())


class _Builder:
    """Finishes a traced graph: inputs in front, clipping and update behind."""

    def __init__(
        self, request: _Request, passes: Passes, buckets: list[Bucket]
    ) -> None:
        self.request, self.passes, self.buckets = request, passes, buckets
        self.graph = passes.graph
        self.owners = _Owners(request.pair, request.optimizer)
        self.names = {id(p): name for name, p in self.owners.parameters.items()}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.inputs: list[str] = []
        self.kept: set[str] = set()
        self._taken: set[str] = {node.name for node in self.graph.nodes}

    def build(self) -> torch.fx.GraphModule:
        import torch

        passes, graph = self.passes, self.graph
        head = next(iter(graph.nodes))
        numbers: list[dict[str, Node]] = []
        with graph.inserting_before(head):
            for i, bucket in enumerate(self.buckets):
                row = {}
                for column in bucket.columns:
                    row[column] = graph.placeholder(self._free(f"{column}_{i}"))
                    row[column].meta["val"] = torch.empty(
                        (), dtype=torch.float64, device="meta"
                    )
                numbers.append(row)
        inputs = [node for row in numbers for node in row.values()] + passes.batch
        for i, node in enumerate(passes.batch):
            self._rename(node, f"batch_{i}")
        self.inputs = [node.name for node in inputs]
        bound: list[tuple[Node, tuple[str, ...]]] = [
            (node, ("parameter", name)) for name, node in passes.parameters.items()
        ]
        bound += [(node, ("buffer", name)) for name, node in passes.buffers.items()]
        states = self._state_places(bound)
        copies = self._work_on_copies()

        clipped = self._clip()
        for bucket, row, state in zip(self.buckets, numbers, states, strict=True):
            self._update(bucket, row, state, clipped)
        if copies:
            graph.call_function(
                torch.ops.aten._foreach_copy_.default,
                (list(copies), list(copies.values())),
            )
        graph.output((passes.loss, *passes.metrics.values()))
        graph.eliminate_dead_code()
        for node, source in bound:
            if not node.users:
                graph.erase_node(node)
                continue
            self._rename(node, "_".join(source))
            self.sources[node.name] = source
        for node, _ in passes.constants.values():
            if node.users:
                self.kept.add(node.name)
            else:
                graph.erase_node(node)
        graph.lint()
        return torch.fx.GraphModule(torch.nn.Module(), graph)

    def _free(self, name: str) -> str:
        name = re.sub(r"\W", "_", name)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _rename(self, node: Node, name: str) -> None:
        """Both of a placeholder's names: runners know it by the one or the other."""
        node.target = node.name = self._free(name)

    def _state_places(
        self, bound: list[tuple[Node, tuple[str, ...]]]
    ) -> list[dict[str, list[Node]]]:
        """Placeholders for the state of each bucket's parameters."""
        states: list[dict[str, list[Node]]] = []
        body = next(n for n in self.graph.nodes if n.op != "placeholder")
        optimizer = self.request.optimizer
        with self.graph.inserting_before(body):
            for bucket in self.buckets:
                group = optimizer.param_groups[bucket.group]
                state: dict[str, list[Node]] = {}
                for member in bucket.members:
                    parameter = group["params"][member]
                    name = self.names[id(parameter)]
                    for key in bucket.rule.state(parameter, group):
                        place = self.graph.placeholder(self._free(f"state_{key}"))
                        bound.append((place, ("state", name, key)))
                        state.setdefault(key, []).append(place)
                states.append(state)
        return states

    def _work_on_copies(self) -> dict[Node, Node]:
        """Buffers that the forward pass writes to are written to in a copy, which is
        put back with the update: a step that fails half-way leaves them as they
        were."""
        import torch

        copies: dict[Node, Node] = {}
        body = next(n for n in self.graph.nodes if n.op != "placeholder")
        for name in self.passes.buffers:
            if name not in self.passes.written:
                continue
            place = self.passes.buffers[name]
            with self.graph.inserting_before(body):
                copy = self.graph.call_function(torch.ops.aten.clone.default, (place,))
            for user in list(place.users):
                if user is not copy:
                    user.replace_input_with(place, copy)
            copies[place] = copy
        return copies

    def _clip(self) -> dict[str, Node]:
        """torch.nn.utils.clip_grad_norm_, over the gradients in its order: that of
        `module.parameters()`."""
        import torch

        gradients = dict(self.passes.gradients)
        if self.request.clip_norm is None:
            return gradients
        aten = torch.ops.aten
        add = self.graph.call_function
        values = list(gradients.values())
        norms = add(aten._foreach_norm.Scalar, (values, 2.0))
        total = add(
            aten.linalg_vector_norm.default, (add(aten.stack.default, (norms,)), 2.0)
        )
        # max_norm / x, as torch.Tensor.__rtruediv__ works it out.
        inverse = add(aten.reciprocal.default, (add(aten.add.Tensor, (total, 1e-6)),))
        scale = add(
            aten.clamp.default,
            (add(aten.mul.Tensor, (inverse, float(self.request.clip_norm))), None, 1.0),
        )
        scaled = add(aten._foreach_mul.Tensor, (values, scale))
        return {
            name: add(operator.getitem, (scaled, i)) for i, name in enumerate(gradients)
        }

    def _update(
        self,
        bucket: Bucket,
        row: dict[str, Node],
        state: dict[str, list[Node]],
        gradients: dict[str, Node],
    ) -> None:
        import torch

        aten = torch.ops.aten
        add = self.graph.call_function
        group = self.request.optimizer.param_groups[bucket.group]
        fixed = bucket.rule.numbers(group, 2)
        numbers: dict[str, Any] = {
            name: add(aten._local_scalar_dense.default, (row[name],))
            if name in row
            else value
            for name, value in fixed.items()
        }
        parameters, directions = [], []
        for member in bucket.members:
            name = self.names[id(group["params"][member])]
            place = self.passes.parameters[name]
            gradient = gradients[name]
            if bucket.rule.fused and not self._dense(name):
                # The fused kernels walk through the memory side by side.
                laid_out = add(aten.empty_like.default, (place,))
                gradient = add(aten.copy_.default, (laid_out, gradient))
            parameters.append(place)
            directions.append(gradient)
        bucket.rule.emit(
            Emitter(self.graph, numbers), group, parameters, directions, state
        )

    def _dense(self, name: str) -> bool:
        """Whether a gradient is sure to be laid out in memory as its parameter is."""
        import torch

        source = self.passes.gradients[name]
        if source.args and getattr(source.args[0], "target", None) is (
            torch.ops.aten.convolution_backward.default
        ):
            return False  # the kernel taken decides
        return name in self.passes.aligned


def _autocast(
    given: torch.dtype | torch.autocast | None, pair: Pair
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    import torch

    if given is None:
        return contextlib.nullcontext
    if isinstance(given, torch.autocast):
        if not given._enabled:
            return contextlib.nullcontext
        kind, dtype = given.device, given.fast_dtype
    elif isinstance(given, torch.dtype):
        first = next(iter(pair.parameters().values()))
        kind, dtype = first.device.type, given
    else:
        raise TypeError(
            "autocast: expected a dtype or a torch.autocast, "
            f"got {type(given).__name__}"
        )
    if dtype != torch.bfloat16:
        raise ValueError(
            f"autocast: {dtype} isn't supported (float16 needs its gradients scaled); "
            "torch.bfloat16 is"
        )
    return lambda: torch.autocast(kind, dtype=dtype)


def _check_parameters(pair: Pair, optimizer: torch.optim.Optimizer) -> None:
    names = {id(p): name for name, p in pair.parameters().items()}
    for i, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"optimizer: parameter group {i} holds a tensor of shape "
                    f"{list(parameter.shape)} that is no parameter of the module or "
                    "the loss; was the module copied or moved after the optimizer was "
                    "made?"
                )
            if parameter.is_complex() or not parameter.is_floating_point():
                raise ValueError(
                    f"parameter {Pair.name(names[id(parameter)])!r}: "
                    f"{parameter.dtype} isn't supported"
                )


_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}


def _check_hooks(pair: Pair) -> None:
    """Hooks are Python, and a step has none. torch.nn.utils' own are traced."""
    for path, part in pair.whole.named_modules():
        for attribute, kind in _HOOKS.items():
            for hook in getattr(part, attribute).values():
                if (type(hook).__module__ or "").startswith("torch.nn.utils"):
                    continue
                raise ValueError(
                    f"module {Pair.name(path) or type(part).__name__!r} has a {kind} "
                    f"({getattr(hook, '__qualname__', type(hook).__name__)}), which is "
                    "Python and would run only once, while the step is traced: remove "
                    "it, and give what it measures as a metric of the loss"
                )
    for name, parameter in pair.parameters().items():
        if parameter._backward_hooks or getattr(
            parameter, "_post_accumulate_grad_hooks", None
        ):
            raise ValueError(
                f"parameter {Pair.name(name)!r} has a hook on its gradient, which is "
                "Python and would not run: remove it"
            )
