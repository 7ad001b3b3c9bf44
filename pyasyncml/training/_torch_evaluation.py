"""The loss and the metrics of a torch module over some data, with nothing trained."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._tracing import alone
from ._trace import Pair, Shapes, trace

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TracedEvaluation:
    """A forward pass and its loss as a graph over live tensors: its placeholders are
    the batch, then those named in `bound`; it returns what `outputs` names."""

    graph_module: torch.fx.GraphModule
    bound: dict[str, torch.Tensor]
    input_names: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Shapes


@alone
def trace_evaluation(
    module: torch.nn.Module,
    loss: Callable[..., Any],
    batch: Sequence[torch.Tensor],
    dynamic: bool,
) -> TracedEvaluation:
    """Traces the module in its evaluation mode, whatever mode it is in.

    `dynamic`: the number of rows may vary. Raises as `trace_step` does.
    """
    import torch

    pair = Pair(module, loss)
    axes = [frozenset({0} if dynamic and t.dim() > 0 else ()) for t in batch]
    with _evaluating(pair.whole):
        passes = trace(
            pair,
            batch,
            accumulate=1,
            autocast=contextlib.nullcontext,
            dynamic=axes,
            wanted=frozenset(),
        )
    passes.graph.output((passes.loss, *passes.metrics.values()))
    live: dict[str, torch.Tensor] = {}
    parameters, buffers = pair.parameters(), pair.buffers()
    live.update((node.name, parameters[n]) for n, node in passes.parameters.items())
    live.update((node.name, buffers[n]) for n, node in passes.buffers.items())
    live.update((node.name, value) for node, value in passes.constants.values())
    return TracedEvaluation(
        torch.fx.GraphModule(torch.nn.Module(), passes.graph),
        live,
        tuple(node.name for node in passes.batch),
        ("loss", *passes.metrics),
        passes.shapes,
    )


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


class Mean:
    """Means over rows of what batches gave: each counts by its rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sums = [0.0] * len(names)
        self._rows = 0

    def add(self, values: Sequence[float], rows: int) -> None:
        self._sums = list(
            map(operator.add, self._sums, (value * rows for value in values))
        )
        self._rows += rows

    def result(self) -> dict[str, float]:
        return {
            name: total / self._rows
            for name, total in zip(self._names, self._sums, strict=True)
        }
