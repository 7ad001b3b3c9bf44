"""Small ONNX models for tests, written with the package `onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT

node = helper.make_node
tensor = helper.make_tensor_value_info
constant = numpy_helper.from_array


def write(
    path: Path | str,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[Any] = (),
    *,
    opset: int = 17,
    check: bool = True,
    ml: bool = False,
) -> str:
    """A model file with that graph: its path. `ml`: with the operators of ai.onnx.ml."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    domains = [helper.make_opsetid("", opset)]
    if ml:
        domains.append(helper.make_opsetid("ai.onnx.ml", 3))
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    if check:
        onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return str(path)


def unary(
    path: Path | str,
    op: str = "Identity",
    type: int = FLOAT,
    shape: Sequence[Any] | None = ("n", 4),
    **options: Any,
) -> str:
    """y = op(x)."""
    return write(
        path,
        [node(op, ["x"], ["y"])],
        [tensor("x", type, shape)],
        [tensor("y", type, shape)],
        **options,
    )


def scale(path: Path | str, factor: float, features: int = 4) -> str:
    """y = factor * x, x of shape [n, features]."""
    return write(
        path,
        [node("Mul", ["x", "factor"], ["y"])],
        [tensor("x", FLOAT, ["n", features])],
        [tensor("y", FLOAT, ["n", features])],
        [constant(np.array(factor, np.float32), "factor")],
    )


def loop(path: Path | str, size: int = 96) -> str:
    """r = x multiplied with itself `n` times: as long a run as is asked for. The rows of
    x are the batch."""
    body = helper.make_graph(
        [
            node("MatMul", ["x_in", "w"], ["product"]),
            node("Tanh", ["product"], ["x_out"]),
            node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go_in", TensorProto.BOOL, []),
            tensor("x_in", FLOAT, ["rows", size]),
        ],
        [
            tensor("go_out", TensorProto.BOOL, []),
            tensor("x_out", FLOAT, ["rows", size]),
        ],
    )
    return write(
        path,
        [
            node("ReduceMax", ["n"], ["most"], keepdims=0),
            node("Loop", ["most", "", "x"], ["r"], body=body),
        ],
        [tensor("x", FLOAT, ["rows", size]), tensor("n", TensorProto.INT64, ["rows"])],
        [tensor("r", FLOAT, ["rows", size])],
        [constant(np.eye(size, dtype=np.float32), "w")],
    )
