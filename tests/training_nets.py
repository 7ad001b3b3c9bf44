"""Small nets and PyTorch's own training loop, to compare training with."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pyasyncml.training._schedule import Schedule
from pyasyncml.training._torch_step import TracedStep, trace_step

ROWS = 100


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def mlp(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


#: name -> (module, shape of one row)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (8,)),
    "mlp with dropout": (lambda: mlp(0.2), (8,)),
    "convolutional": (convolutional, (1, 8, 8)),
    "transformer": (lambda: Transformer(0.0), (6, 5)),
    "transformer with dropout": (lambda: Transformer(0.1), (6, 5)),
}


def make(net: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A net of which each call has the same weights, and data for it."""
    kind, shape = NETS[net]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kind(), torch.randn(ROWS, *shape), torch.randint(4, (ROWS,))


def batches(
    n: int, *data: torch.Tensor, rows: int = 32, last: int = 9
) -> Iterator[tuple[torch.Tensor, ...]]:
    """`n` batches; every fourth is a smaller one."""
    for i in range(n):
        size = last if i % 4 == 3 else rows
        chosen = torch.tensor([(37 * i + j) % ROWS for j in range(size)])
        yield tuple(tensor[chosen] for tensor in data)


def torch_loop(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterator[tuple[torch.Tensor, ...]],
    *,
    loss: Callable[..., torch.Tensor] = F.cross_entropy,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    scheduler: Any = None,
    every: int = 1,
) -> list[float]:
    """The loop that everybody writes."""
    losses = []
    for i, (x, y) in enumerate(data):
        optimizer.zero_grad()
        total = 0.0
        parts = zip(x.chunk(accumulate), y.chunk(accumulate), strict=True)
        for a, b in parts:
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                value = loss(module(a), b)
            value = value / accumulate if accumulate > 1 else value
            value.backward()
            total = total + value.detach()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        if scheduler is not None and (i + 1) % every == 0:
            scheduler.step()
        losses.append(total.item())
    return losses


class _Interpreter(torch.fx.Interpreter):
    """Runs a graph operator by operator, with a generator for those that draw."""

    generator: torch.Generator | None = None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        schema = getattr(target, "_schema", None)
        arguments = schema.arguments if schema is not None else ()
        draws = any("Generator" in str(a.type) for a in arguments)
        if draws and self.generator is not None:
            kwargs = {**kwargs, "generator": self.generator}
        return super().call_function(target, args, kwargs)


def run_step(
    step: TracedStep, row: Sequence[float], batch: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """A step in Python, as the native runner does it."""
    numbers = [torch.tensor(float(v), dtype=torch.float64) for v in row]
    inputs = iter([*numbers, *batch])
    values = [
        step.bound[node.name] if node.name in step.bound else next(inputs)
        for node in step.graph_module.graph.nodes
        if node.op == "placeholder"
    ]
    interpreter = _Interpreter(step.graph_module)
    interpreter.generator = step.generator
    with torch.no_grad():
        return interpreter.run(*values)


def table(schedule: Schedule, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The next steps' numbers, as a run takes them."""
    return np.array([*itertools.islice(schedule.rows(), steps)])


def run_steps(
    step: TracedStep,
    data: Iterator[tuple[torch.Tensor, ...]],
    schedule: Schedule | None = None,
) -> list[float]:
    """Steps in Python, with a table of the numbers of each."""
    chosen = list(data)
    schedule = schedule or Schedule(step)
    losses = []
    for row, batch in zip(table(schedule, len(chosen)), chosen, strict=True):
        losses.append(run_step(step.variant(batch), row, batch)[0].item())
    step.sync(len(chosen))
    return losses


Make = Callable[[Any], torch.optim.Optimizer]


def twins(
    net: str, optimizer: Make
) -> tuple[tuple[nn.Module, Any], tuple[nn.Module, Any], tuple[torch.Tensor, ...]]:
    """Twice the same module and optimizer, and data."""
    module, x, y = make(net)
    other = copy.deepcopy(module)
    return (
        (module, optimizer(module.parameters())),
        (other, optimizer(other.parameters())),
        (x, y),
    )


def trace(module: nn.Module, optimizer: Any, data: Any, **options: Any) -> TracedStep:
    options.setdefault("loss", F.cross_entropy)
    example = tuple(tensor[:32] for tensor in data)
    loss = options.pop("loss")
    return trace_step(module, loss, optimizer, example, **options)


def same_state(one: Any, two: Any) -> bool:
    """Whether two state_dicts hold the same to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_state(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same_state, one, two))
    return bool(one == two)
