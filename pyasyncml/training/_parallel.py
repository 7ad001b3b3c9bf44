"""Data-parallel training: a replica on each of several devices, in one graph.

Each replica has its own parameters, buffers and optimizer state, and runs forward and
backward pass over its rows of the batch. The gradients are averaged on the first device
in the order of the replicas, weighted by rows, clipped there, and sent to all; each
replica makes the same update. The first replica is the module itself; of the buffers
that a forward pass writes to, the first replica's are everybody's.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..export._replicas import barrier, shard
from ._optimizers import Bucket
from ._step_graph import Source, StepGraph
from ._trace import Passes, Shapes, kind_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Node

    from ._torch_step import Request


class Replicas:
    """The devices, and all tensors of the replicas but the first."""

    def __init__(
        self, devices: Sequence[str], generators: Sequence[torch.Generator] = ()
    ) -> None:
        self.devices = tuple(devices)
        self.generators = tuple(generators)  # of the replicas but the first
        self._tensors: dict[tuple[int, Source], Tensor] = {}

    def __len__(self) -> int:
        return len(self.devices)

    def place(self, replica: int, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the first replica, for another one. What that has on
        the CPU beside its device (the optimizers' counters) stays there."""
        import torch

        device = tensor.device
        if device.type == torch.device(self.devices[0]).type:
            device = torch.device(self.devices[replica])
        with torch.no_grad():
            copy = torch.empty_like(tensor, device=device, requires_grad=False)
            copy.copy_(tensor)
        return copy.requires_grad_(tensor.requires_grad)

    def find(self, replica: int, source: Source, original: Tensor) -> Tensor:
        """The replica's counterpart of a live tensor; a new one, equal to it, where
        there is none of its kind."""
        held = self._tensors.get((replica, source))
        if (
            held is None
            or held.shape != original.shape
            or held.dtype != original.dtype
            or held.stride() != original.stride()
            or held.requires_grad != original.requires_grad
        ):
            held = self._tensors[replica, source] = self.place(replica, original)
        return held

    def split(self, batch: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Each replica's rows. Raises `InputError` where a batch can't be split."""
        self.check([tuple(tensor.shape) for tensor in batch])
        parts = len(self)
        return [tuple(shard(batch, part, parts)) for part in range(parts)]

    def split_shapes(
        self, shapes: Sequence[Sequence[int]]
    ) -> list[list[tuple[int, ...]]]:
        """The shapes of each replica's rows. Raises as `split`."""
        rows = self.check(shapes)
        size, larger = divmod(rows, len(self))
        return [
            [(size + (part < larger), *shape[1:]) if shape else () for shape in shapes]
            for part in range(len(self))
        ]

    def check(self, shapes: Sequence[Sequence[int]]) -> int:
        """The number of rows of a batch that can be split; raises `InputError`."""
        rows = [(i, shape[0]) for i, shape in enumerate(shapes) if len(shape) > 0]
        if not rows:
            raise InputError("batch: has no rows that several devices could share")
        n = rows[0][1]
        for i, other in rows:
            if other != n:
                raise InputError(
                    f"batch[{i}]: has {other} rows and batch[{rows[0][0]}] {n}: they "
                    "can't be split over several devices alike"
                )
        if n < len(self):
            raise InputError(
                f"batch: {n} row{'s' if n != 1 else ''} can't be split over "
                f"{len(self)} devices, each of which needs one or more (is it an "
                "epoch's last, smaller batch? choose another batch_size, or drop it)"
            )
        return n


class ShardedShapes:
    """For which sizes of a batch a graph of several replicas holds: as `Shapes`."""

    def __init__(
        self, replicas: Replicas, parts: Sequence[Shapes], batch: Sequence[Tensor]
    ) -> None:
        self._replicas, self._parts = replicas, list(parts)
        self._kinds = [kind_of(tensor) for tensor in batch]

    @property
    def dynamic(self) -> bool:
        return any(part.dynamic for part in self._parts)

    def describe(self, i: int) -> str:
        return self._parts[0].describe(i) if self.dynamic else self._kinds[i]

    def fit(self, shapes: Sequence[Sequence[int]]) -> bool:
        split = self._replicas.split_shapes(shapes)
        return all(part.fit(own) for part, own in zip(self._parts, split, strict=True))


class ParallelGraph(StepGraph):
    """The step of all replicas, out of the passes that were traced for each one's share
    of the batch (the same ones, where they hold for both)."""

    def __init__(
        self,
        request: Request,
        replicas: Replicas,
        traced: list[Passes],
        buckets: list[Bucket],
    ) -> None:
        import torch

        whole = dataclasses.replace(traced[0], graph=torch.fx.Graph())
        super().__init__(request, whole, buckets)
        self.replicas, self.traced = replicas, traced
        self._taken.clear()
        for passes in traced[1:]:
            if list(passes.gradients) != list(traced[0].gradients) or list(
                passes.metrics
            ) != list(traced[0].metrics):
                raise InputError(
                    "batch: with another number of rows the loss gives other metrics, "
                    "or trains other parameters; make its size one that the devices "
                    "can share equally"
                )

    def build(self) -> torch.fx.GraphModule:
        import torch

        aten = torch.ops.aten
        columns = self._columns()
        batch = [self._whole(i) for i in range(len(self.request.batch))]
        self._inputs_are(columns, batch)
        places = [self._places(k) for k in range(len(self.replicas))]
        constants = [
            (mapped[node], value if k == 0 else self.replicas.place(k, value))
            for k, mapped in enumerate(places)
            for node, value in self.traced[k].constants.values()
        ]
        each = [self._passes(k, mapped, batch) for k, mapped in enumerate(places)]

        bound, states, copies = [], [], []
        for k, passes in enumerate(each):
            own = self._bound_of(passes)
            states.append(self._state_places(own))
            bound += [(node, k, source) for node, source in own]
            copies.append(self._work_on_copies(passes))

        weights = self._weights(each)
        flat = self._mean_gradients(each, weights)
        results = [
            self._mean([passes.loss for passes in each], weights),
            *(
                self._mean([passes.metrics[name] for passes in each], weights)
                for name in each[0].metrics
            ),
        ]
        views = self._views(flat)
        if (scale := self._clip(views)) is not None:
            flat = {
                dtype: self.graph.call_function(aten.mul.Tensor, (gradient, scale))
                for dtype, gradient in flat.items()
            }
        numbers = self._numbers(columns)
        gradients = [
            self._views({dtype: self._moved(f, k) for dtype, f in flat.items()})
            for k in range(len(each))
        ]
        self.graph.call_function(barrier)
        # The module itself comes last: what fails before has not changed it.
        for k in reversed(range(len(each))):
            passes = dataclasses.replace(
                each[k], gradients=gradients[k], aligned=self._contiguous()
            )
            for bucket, fixed, state in zip(
                self.buckets, numbers, states[k], strict=True
            ):
                self._update(passes, bucket, fixed, state, gradients[k])
            for place, (first, copy) in zip(copies[k], copies[0].items(), strict=True):
                del first
                self.graph.call_function(aten.copy_.default, (place, copy))
        self.graph.output(tuple(results))
        return self._finish(bound, constants)

    # --- placeholders ---

    def _whole(self, i: int) -> Node:
        """The whole batch's tensor: its rows, and what else was meant to vary, may."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import (
            DimDynamic,
            ShapeEnv,
            StatelessSymbolicContext,
        )

        tensor, axes = self.request.batch[i], self.request.dynamic[i]
        node = self.graph.placeholder(self._free(f"batch_{i}"))
        sizes = [
            DimDynamic.DYNAMIC if axis in axes else DimDynamic.STATIC
            for axis in range(tensor.dim())
        ]
        node.meta["val"] = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(
            tensor.detach(),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
        )
        return node

    def _places(self, replica: int) -> dict[Node, Node]:
        """Placeholders for what a replica's passes are bound to, by the traced ones."""
        traced = self.traced[replica]
        nodes = [
            *traced.parameters.values(),
            *traced.buffers.values(),
            *(node for node, _ in traced.constants.values()),
        ]
        mapped = {}
        for node in nodes:
            place = self.graph.placeholder(self._free(f"{node.name}_{replica}"))
            place.meta.update(node.meta)
            mapped[node] = place
        return mapped

    def _passes(
        self, replica: int, mapped: dict[Node, Node], batch: list[Node]
    ) -> Passes:
        """A replica's forward and backward pass, appended to the graph."""
        import torch

        home = torch.device(self.replicas.devices[0])
        device = torch.device(self.replicas.devices[replica])

        def elsewhere(value: Any) -> Any:
            if isinstance(value, torch.device) and value.type == home.type:
                return device
            return value

        traced, graph = self.traced[replica], self.graph
        rows = graph.call_function(shard, (batch, replica, len(self.replicas)))
        for i, node in enumerate(traced.batch):
            mapped[node] = graph.call_function(operator.getitem, (rows, i))
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                continue
            copy = graph.node_copy(node, mapped.__getitem__)
            copy.args = torch.fx.node.map_aggregate(copy.args, elsewhere)
            copy.kwargs = torch.fx.node.map_aggregate(copy.kwargs, elsewhere)
            copy.meta["replica"] = replica
            mapped[node] = copy

        def of(nodes: dict[str, Node]) -> dict[str, Node]:
            return {name: mapped[node] for name, node in nodes.items()}

        return dataclasses.replace(
            traced,
            graph=graph,
            batch=[mapped[node] for node in traced.batch],
            parameters=of(traced.parameters),
            buffers=of(traced.buffers),
            constants={},
            loss=mapped[traced.loss],
            metrics=of(traced.metrics),
            gradients=of(traced.gradients),
        )

    # --- means over the replicas ---

    def _weights(self, each: list[Passes]) -> list[Node]:
        """Each replica's share of the rows."""
        import torch

        add = self.graph.call_function
        which = next(i for i, t in enumerate(self.request.batch) if t.dim() > 0)
        rows = [
            add(torch.ops.aten.sym_size.int, (passes.batch[which], 0))
            for passes in each
        ]
        total = functools.reduce(lambda a, b: add(operator.add, (a, b)), rows)
        return [add(operator.truediv, (own, total)) for own in rows]

    def _mean(self, values: Sequence[Node], weights: Sequence[Node]) -> Node:
        """On the first device, added up in the order of the replicas."""
        import torch

        aten = torch.ops.aten
        add = self.graph.call_function
        mean = add(aten.mul.Tensor, (values[0], weights[0]))
        for k in range(1, len(values)):
            near = self._moved(values[k], 0, k)
            near = add(aten.mul.Tensor, (near, weights[k]))
            mean = add(aten.add.Tensor, (mean, near))
        return mean

    def _moved(self, value: Node, replica: int, source: int = 0) -> Node:
        import torch

        there = self.replicas.devices[replica]
        if there == self.replicas.devices[source]:
            return value
        return self.graph.call_function(
            torch.ops.aten._to_copy.default, (value,), {"device": torch.device(there)}
        )

    def _by_dtype(self) -> dict[torch.dtype, list[str]]:
        by_dtype: dict[torch.dtype, list[str]] = {}
        for name in self.traced[0].gradients:
            dtype = self.owners.parameters[name].dtype
            by_dtype.setdefault(dtype, []).append(name)
        return by_dtype

    def _mean_gradients(
        self, each: list[Passes], weights: Sequence[Node]
    ) -> dict[torch.dtype, Node]:
        """All gradients of a dtype side by side: one copy between two devices."""
        import torch

        aten = torch.ops.aten
        add = self.graph.call_function
        flat = {}
        for dtype, names in self._by_dtype().items():
            sides = []
            for passes in each:
                rows = [
                    add(aten.reshape.default, (passes.gradients[name], [-1]))
                    for name in names
                ]
                sides.append(add(aten.cat.default, (rows,)))
            flat[dtype] = self._mean(sides, weights)
        return flat

    def _views(self, flat: dict[torch.dtype, Node]) -> dict[str, Node]:
        """The gradients that lie side by side, in the order of the parameters."""
        import torch

        aten = torch.ops.aten
        add = self.graph.call_function
        views = {}
        for dtype, names in self._by_dtype().items():
            begin = 0
            for name in names:
                parameter = self.owners.parameters[name]
                part = add(
                    aten.narrow.default, (flat[dtype], 0, begin, parameter.numel())
                )
                views[name] = add(aten.view.default, (part, list(parameter.shape)))
                begin += parameter.numel()
        return {name: views[name] for name in self.traced[0].gradients}

    def _contiguous(self) -> set[str]:
        return {n for n, p in self.owners.parameters.items() if p.is_contiguous()}


_SUM = 2  # of ATen's enumeration Reduction


def check_loss(loss: Callable[..., Any]) -> None:
    """Raises `ValueError` for a loss that says that it adds its rows up: the mean over
    the replicas would be another number than that over the batch."""
    said: Any = loss
    if isinstance(loss, functools.partial):
        said, reduction = loss.func, loss.keywords.get("reduction")
    else:
        reduction = getattr(loss, "reduction", None)
    if reduction == "sum":
        _refuse(getattr(said, "__name__", type(said).__name__))


def check_traced_loss(loss: Node) -> None:
    """The same for one whose last operator says so."""
    node = loss
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.name != "reduction":
            continue
        given = node.args[i] if i < len(node.args) else node.kwargs.get("reduction")
        if given == _SUM:
            _refuse(schema.name.removeprefix("aten::"))


def _refuse(name: str) -> None:
    raise ValueError(
        f"loss: {name} adds up over the rows (reduction='sum'); on several devices it "
        "has to be the mean over the batch, since the replicas' gradients are averaged"
    )
