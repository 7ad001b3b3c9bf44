"""Recurrent layers that stay whole in an export.

torch finds out the shapes of an LSTM's results by unrolling it, which burns the length
of the example into the program. Their shapes are known without that, so while a module
is exported the layers say them themselves; the operator that runs is torch's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_aten = torch.ops.aten


def _output(x: torch.Tensor, hidden: int, bidirectional: bool) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], hidden * (2 if bidirectional else 1)))


def _rnn(
    x: torch.Tensor,
    hx: torch.Tensor,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Also for batch_first: the axes of time and batch only keep their places.
    return _output(x, hx.shape[-1], bidirectional), torch.empty_like(hx)


def _lstm(
    x: torch.Tensor,
    hx: list[torch.Tensor],
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, cell = hx  # the hidden one is smaller with proj_size
    output = _output(x, hidden.shape[-1], bidirectional)
    return output, torch.empty_like(hidden), torch.empty_like(cell)


def _fake(shape: Any) -> Any:
    """How fake tensors, by which torch traces, run the operator."""

    def run(mode: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return shape(*args, **kwargs)

    return run


_SHAPES: dict[Any, Any] = {
    _aten.lstm.input: _lstm,
    _aten.gru.input: _rnn,
    _aten.rnn_tanh.input: _rnn,
    _aten.rnn_relu.input: _rnn,
}


@contextlib.contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """While it is entered, exports keep recurrent layers as one operator each.

    Changes torch for the whole process: enter it with the lock of exports held.
    """
    # Without it the layers are unrolled as ever, and their lengths can't vary.
    rules = getattr(torch._subclasses.fake_impls, "op_implementations_dict", {})
    table = torch._decomp.decomposition_table
    unrolling = {op: table[op] for op in _SHAPES if op in table}
    replaced: list[tuple[Any, Any, Any]] = []
    ruled = [op for op in _SHAPES if op not in rules]
    try:
        table.update({op: _SHAPES[op] for op in unrolling})
        for op in ruled:
            rules[op] = _fake(_SHAPES[op])
        for op, shape in _SHAPES.items():
            for key, kernel in list(op.py_kernels.items()):
                replaced.append((op, key, kernel))
                op.py_kernels[key] = shape
            op._dispatch_cache.clear()
        yield
    finally:
        table.update(unrolling)
        for op in ruled:
            rules.pop(op, None)
        for op, key, kernel in replaced:
            op.py_kernels[key] = kernel
            op._dispatch_cache.clear()
