"""What a traced forward and backward pass lacks of a training step: inputs in front,
clipping and the optimizer's update behind."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from ._optimizers import Bucket, Emitter
from ._trace import Pair, Passes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Node

    from ._torch_step import Request

#: Where a live tensor is found: its kind, its parameter's or buffer's name, and for
#: optimizer state the key.
Source = tuple[str, ...]
#: Of which replica, and where its like is found; 0 is the live one.
Place = tuple[int, Source]


class Owners:
    """Where live tensors are found by name."""

    def __init__(self, pair: Pair, optimizer: torch.optim.Optimizer) -> None:
        self.parameters = pair.parameters()
        self.buffers = pair.buffers()
        self.optimizer = optimizer

    def find(self, source: Source) -> Tensor:
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


class StepGraph:
    """Finishes a traced graph: inputs in front, clipping and update behind."""

    def __init__(self, request: Request, passes: Passes, buckets: list[Bucket]) -> None:
        self.request, self.passes, self.buckets = request, passes, buckets
        self.graph = passes.graph
        self.owners = Owners(request.pair, request.optimizer)
        self.names = {id(p): name for name, p in self.owners.parameters.items()}
        self.places: dict[str, Place] = {}  # what a placeholder is bound to …
        self.constants: dict[str, Tensor] = {}  # … and those that are no state
        self.inputs: list[str] = []
        self._taken: set[str] = {node.name for node in self.graph.nodes}

    def build(self) -> torch.fx.GraphModule:
        import torch

        passes, graph = self.passes, self.graph
        with graph.inserting_before(next(iter(graph.nodes))):
            columns = self._columns()
        for i, node in enumerate(passes.batch):
            self._rename(node, f"batch_{i}")
        self._inputs_are(columns, passes.batch)
        bound = self._bound_of(passes)
        states = self._state_places(bound)
        copies = self._work_on_copies(passes)

        gradients = dict(passes.gradients)
        if (scale := self._clip(gradients)) is not None:
            scaled = graph.call_function(
                torch.ops.aten._foreach_mul.Tensor, (list(gradients.values()), scale)
            )
            gradients = {
                name: graph.call_function(operator.getitem, (scaled, i))
                for i, name in enumerate(gradients)
            }
        numbers = self._numbers(columns)
        for bucket, fixed, state in zip(self.buckets, numbers, states, strict=True):
            self._update(passes, bucket, fixed, state, gradients)
        if copies:
            graph.call_function(
                torch.ops.aten._foreach_copy_.default,
                (list(copies), list(copies.values())),
            )
        graph.output((passes.loss, *passes.metrics.values()))
        return self._finish(
            [(node, 0, source) for node, source in bound],
            list(passes.constants.values()),
        )

    def _finish(
        self,
        bound: list[tuple[Node, int, Source]],
        constants: list[tuple[Node, Tensor]],
    ) -> torch.fx.GraphModule:
        """Leaves out what nobody uses, and notes what the rest is bound to."""
        import torch

        graph = self.graph
        graph.eliminate_dead_code()
        for node, replica, source in bound:
            if not node.users:
                graph.erase_node(node)
                continue
            prefix = f"replica_{replica}_" if replica else ""
            self._rename(node, prefix + "_".join(source))
            self.places[node.name] = (replica, source)
        for node, value in constants:
            if node.users:
                self.constants[node.name] = value
            else:
                graph.erase_node(node)
        graph.lint()
        return torch.fx.GraphModule(torch.nn.Module(), graph)

    # --- placeholders ---

    def _columns(self) -> list[dict[str, Node]]:
        """Placeholders for the numbers that change from step to step, by bucket."""
        import torch

        columns = []
        for i, bucket in enumerate(self.buckets):
            row = {}
            for column in bucket.columns:
                row[column] = self.graph.placeholder(self._free(f"{column}_{i}"))
                row[column].meta["val"] = torch.empty(
                    (), dtype=torch.float64, device="meta"
                )
            columns.append(row)
        return columns

    def _inputs_are(self, columns: list[dict[str, Node]], batch: list[Node]) -> None:
        numbers = [node for row in columns for node in row.values()]
        self.inputs = [node.name for node in (*numbers, *batch)]

    def _bound_of(self, passes: Passes) -> list[tuple[Node, Source]]:
        bound: list[tuple[Node, Source]] = [
            (node, ("parameter", name)) for name, node in passes.parameters.items()
        ]
        return bound + [(node, ("buffer", n)) for n, node in passes.buffers.items()]

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
        self, bound: list[tuple[Node, Source]]
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

    def _work_on_copies(self, passes: Passes) -> dict[Node, Node]:
        """Buffers that the forward pass writes to are written to in a copy, which is
        put back with the update: a step that fails half-way leaves them as they
        were."""
        import torch

        copies: dict[Node, Node] = {}
        body = next(n for n in self.graph.nodes if n.op != "placeholder")
        for name, place in passes.buffers.items():
            if name not in passes.written:
                continue
            with self.graph.inserting_before(body):
                copy = self.graph.call_function(torch.ops.aten.clone.default, (place,))
            for user in list(place.users):
                if user is not copy:
                    user.replace_input_with(place, copy)
            copies[place] = copy
        return copies

    # --- clipping and update ---

    def _clip(self, gradients: dict[str, Node]) -> Node | None:
        """What torch.nn.utils.clip_grad_norm_ multiplies gradients by, from their norms
        in its order: that of `module.parameters()`. None: nothing is clipped."""
        import torch

        if self.request.clip_norm is None:
            return None
        aten = torch.ops.aten
        add = self.graph.call_function
        norms = add(aten._foreach_norm.Scalar, (list(gradients.values()), 2.0))
        total = add(
            aten.linalg_vector_norm.default, (add(aten.stack.default, (norms,)), 2.0)
        )
        # max_norm / x, as torch.Tensor.__rtruediv__ works it out.
        inverse = add(aten.reciprocal.default, (add(aten.add.Tensor, (total, 1e-6)),))
        return add(
            aten.clamp.default,
            (add(aten.mul.Tensor, (inverse, float(self.request.clip_norm))), None, 1.0),
        )

    def _numbers(self, columns: list[dict[str, Node]]) -> list[dict[str, Any]]:
        """What each bucket's rule calls numbers: read from the inputs, or fixed."""
        import torch

        read = torch.ops.aten._local_scalar_dense.default
        numbers = []
        for bucket, row in zip(self.buckets, columns, strict=True):
            group = self.request.optimizer.param_groups[bucket.group]
            numbers.append(
                {
                    name: self.graph.call_function(read, (row[name],))
                    if name in row
                    else value
                    for name, value in bucket.rule.numbers(group, 2).items()
                }
            )
        return numbers

    def _update(
        self,
        passes: Passes,
        bucket: Bucket,
        numbers: dict[str, Any],
        state: dict[str, list[Node]],
        gradients: dict[str, Node],
    ) -> None:
        import torch

        aten = torch.ops.aten
        add = self.graph.call_function
        group = self.request.optimizer.param_groups[bucket.group]
        parameters, directions = [], []
        for member in bucket.members:
            name = self.names[id(group["params"][member])]
            place = passes.parameters[name]
            gradient = gradients[name]
            if bucket.rule.fused and not self._dense(passes, name):
                # The fused kernels walk through the memory side by side.
                laid_out = add(aten.empty_like.default, (place,))
                gradient = add(aten.copy_.default, (laid_out, gradient))
            parameters.append(place)
            directions.append(gradient)
        bucket.rule.emit(
            Emitter(self.graph, numbers), group, parameters, directions, state
        )

    def _dense(self, passes: Passes, name: str) -> bool:
        """Whether a gradient is sure to be laid out in memory as its parameter is."""
        import torch

        source = passes.gradients[name]
        if source.args and getattr(source.args[0], "target", None) is (
            torch.ops.aten.convolution_backward.default
        ):
            return False  # the kernel taken decides
        return name in passes.aligned
