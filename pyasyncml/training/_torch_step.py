"""A whole training step of a PyTorch module as one graph.

Forward pass, loss, backward pass, clipping and the optimizer's update are traced once;
running the graph trains the module's own parameters and buffers and the optimizer's own
state in place. No Python runs in a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._copies import copy_all
from .._tracing import alone, at_rest
from ..errors import InputError
from . import _optimizers
from ._optimizers import Bucket
from ._parallel import ParallelGraph, Replicas, ShardedShapes, check_traced_loss
from ._step_graph import Owners, Place, StepGraph
from ._trace import Pair, Passes, Shapes, SizesNeeded, describe, kind_of, trace

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    - With `replicas` the batch is split over them by rows (_parallel.py); nodes say by
      ``meta["replica"]`` whose they are, and replicas but the first have generators of
      their own. `replicate()` before a run makes them equal to the module.
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
    replicas: Replicas | None
    _shapes: Shapes | ShardedShapes
    _request: Request
    _places: dict[str, Place]
    _variants: list[TracedStep] = field(default_factory=list)
    _traced: int = 1  # in all
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
        self._traced += 1
        if self._traced in (5, 33) and not made._shapes.dynamic:
            warnings.warn(
                f"the step has been traced {self._traced} times, since it holds for "
                "batches of one size only: its Python asks for the size, or it is a "
                "recurrent net's. Batches of one size (drop the last, smaller one; pad "
                "sequences to few lengths) avoid that",
                RuntimeWarning,
                stacklevel=2,
            )
        return made

    def forget(self, variant: TracedStep) -> None:
        """Keeps a variant no longer; it is traced again where it is needed. Itself it
        keeps."""
        self._variants = [step for step in self._variants if step is not variant]

    def refresh(self) -> bool:
        """Looks the live tensors up again, and what the optimizer has been set to.

        Returns whether something has to be bound anew (`bound` is then up to date): a
        state_dict was loaded into the optimizer, or parameters were replaced. Raises
        `ValueError` where the graph no longer fits: a parameter changed its size or
        dtype, or it is `outdated`. Trace again then.
        """
        if changed := self.outdated():
            raise ValueError(f"{changed} since the step was traced: trace it again")
        owners = Owners(self._request.pair, self.optimizer)
        for bucket in self.buckets:
            bucket.initialise(self.optimizer)
            bucket.taken(self.optimizer)
        stale = False
        for name, place in self._places.items():
            tensor = _live(owners, self.replicas, place)
            source = place[1]
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

    @at_rest
    def replicate(self) -> None:
        """Gives every replica what the first one, the module, has. Where no step runs;
        whatever anybody did to the module since the last one is what counts."""
        owners = Owners(self._request.pair, self.optimizer)
        into: dict[int, tuple[Tensor, Tensor]] = {}
        for step in (self, *self._variants):
            for name, (replica, source) in step._places.items():
                if replica > 0:
                    tensor = step.bound[name]
                    into[id(tensor)] = (tensor, owners.find(source))
        copy_all([a for a, _ in into.values()], [b for _, b in into.values()])

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
        self._places.clear()


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
    replicas: Replicas | None = None,
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
    (`_schedule.varying(scheduler)`). `replicas`: where the batch is split over several
    devices; of these `accumulate` cuts each one's rows.

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
    request = Request(
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
        replicas=replicas,
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
class Request:
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
    replicas: Replicas | None = None
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
        made = request.trace(first.buckets)
        if made.columns != first.columns or made.outputs != first.outputs:
            raise InputError(
                "batch: with these shapes the loss gives other metrics, or trains "
                f"other parameters, than before ({describe(batch)})"
            )
        return made

    def trace(self, buckets: list[Bucket] | None = None) -> TracedStep:
        """`buckets`: of the first step, where this one is another of the same."""
        again = buckets is not None
        shapes: Shapes | ShardedShapes
        if self.replicas is None:
            passes = self._passes(self.batch, again)
            buckets = buckets or self._buckets(passes)
            builder = StepGraph(self, passes, buckets)
            shapes = passes.shapes
        else:
            traced = self._passes_of_replicas(self.replicas, again)
            passes = traced[0]
            buckets = buckets or self._buckets(passes)
            builder = ParallelGraph(self, self.replicas, traced, buckets)
            parts = [part.shapes for part in traced]
            shapes = ShardedShapes(self.replicas, parts, self.batch)
        graph_module = builder.build()
        bound = {
            name: _live(builder.owners, self.replicas, place)
            for name, place in builder.places.items()
        }
        marks = {name: _mark(tensor) for name, tensor in bound.items()}
        return TracedStep(
            graph_module=graph_module,
            bound={**bound, **builder.constants},
            input_names=tuple(builder.inputs),
            columns=tuple(
                f"{column}[{i}]" for i, b in enumerate(buckets) for column in b.columns
            ),
            outputs=("loss", *passes.metrics),
            buckets=buckets,
            optimizer=self.optimizer,
            generator=self.generator,
            replicas=self.replicas,
            _shapes=shapes,
            _request=self,
            _places=builder.places,
            _marks=marks,
        )

    def _passes(self, batch: tuple[Tensor, ...], again: bool) -> Passes:
        parts = self.accumulate
        if again:  # torch.chunk makes fewer of few rows
            rows = batch[0].shape[0] if batch[0].dim() else 1
            parts = -(-rows // -(-rows // parts))
        options: dict[str, Any] = {
            "accumulate": parts,
            "autocast": self.autocast,
            "wanted": self._wanted(),
        }
        try:
            return trace(self.pair, batch, dynamic=self.dynamic, **options)
        except SizesNeeded:  # a graph for each size then
            self.dynamic, self.grows = [frozenset()] * len(batch), False
            return trace(self.pair, batch, dynamic=self.dynamic, **options)

    def _passes_of_replicas(self, replicas: Replicas, again: bool) -> list[Passes]:
        """Those of each share of the batch; of equal ones, and of others where they
        hold for both, the same."""
        found: list[Passes] = []
        for rows in replicas.split(self.batch):
            shapes = [tuple(tensor.shape) for tensor in rows]
            passes = next((p for p in found if p.shapes.fit(shapes)), None)
            found.append(passes or self._passes(rows, again))
        if self.accumulate == 1:
            check_traced_loss(found[0].loss)
        return found

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


def _live(owners: Owners, replicas: Replicas | None, place: Place) -> Tensor:
    replica, source = place
    tensor = owners.find(source)
    if replica == 0:
        return tensor
    assert replicas is not None
    return replicas.find(replica, source, tensor)


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """Changes with the memory that a tensor stands for."""
    return (id(tensor), tensor.data_ptr(), tensor.stride())


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
