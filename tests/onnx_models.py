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
    """A file of a model with that graph: its path. `ml`: ai.onnx.ml's operators too."""
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
    element: int = FLOAT,
    shape: Sequence[Any] | None = ("n", 4),
    **options: Any,
) -> str:
    """y = op(x)."""
    return write(
        path,
        [node(op, ["x"], ["y"])],
        [tensor("x", element, shape)],
        [tensor("y", element, shape)],
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
    """r = x multiplied and squashed `n` times: as long a run as is wanted. The rows of
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


def late(path: Path | str) -> str:
    """y = x, which is read when `n` rounds of something else are over."""
    body = helper.make_graph(
        [
            node("Tanh", ["v_in"], ["v_out"]),
            node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go_in", TensorProto.BOOL, []),
            tensor("v_in", FLOAT, []),
        ],
        [tensor("go_out", TensorProto.BOOL, []), tensor("v_out", FLOAT, [])],
    )
    return write(
        path,
        [
            node("Loop", ["n", "", "zero"], ["v"], body=body),
            node("Add", ["x", "v"], ["y"]),
        ],
        [tensor("x", FLOAT, ["k"]), tensor("n", TensorProto.INT64, [])],
        [tensor("y", FLOAT, ["k"])],
        [constant(np.array(0, np.float32), "zero")],
    )


def reshaped(path: Path | str) -> str:
    """y = x in the shape that is asked for, which may not fit."""
    return write(
        path,
        [node("Reshape", ["x", "shape"], ["y"], name="the_reshape")],
        [tensor("x", FLOAT, ["n"]), tensor("shape", TensorProto.INT64, ["k"])],
        [tensor("y", FLOAT, None)],
        check=False,
    )


def total(path: Path | str) -> str:
    """y = the sum of x, float32 [n]."""
    return write(
        path,
        [node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, [])],
    )


def grown(path: Path | str, rows: int) -> str:
    """y [rows, 1] of one number x [1]."""
    return write(
        path,
        [node("Expand", ["x", "shape"], ["y"])],
        [tensor("x", FLOAT, [1])],
        [tensor("y", FLOAT, [rows, 1])],
        [constant(np.array([rows, 1], np.int64), "shape")],
    )


def digits(path: Path | str, weights: Sequence[Any]) -> str:
    """The net of pyasyncml.demo.digits with these weights: two convolutions, a pooling,
    a linear layer; images [n, 1, 8, 8] to scores [n, 10]."""
    names = ["w1", "b1", "w2", "b2", "w3", "b3"]
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return write(
        path,
        [
            node("Conv", ["x", "w1", "b1"], ["c1"], **same),
            node("Relu", ["c1"], ["r1"]),
            node("Conv", ["r1", "w2", "b2"], ["c2"], **same),
            node("Relu", ["c2"], ["r2"]),
            node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
        ],
        [tensor("x", FLOAT, ["n", 1, 8, 8])],
        [tensor("y", FLOAT, ["n", 10])],
        [constant(np.asarray(w), name) for w, name in zip(weights, names, strict=True)],
    )


def running(path: Path | str, width: int) -> str:
    """y = state + the sum of x [n, length, width] over what the mask [n, length] has;
    next = tanh(y)."""
    return write(
        path,
        [
            node("Unsqueeze", ["mask", "last"], ["wide"]),
            node("Mul", ["x", "wide"], ["masked"]),
            node("ReduceSum", ["masked", "length_axis"], ["sum"], keepdims=0),
            node("Add", ["state", "sum"], ["y"]),
            node("Tanh", ["y"], ["next"]),
        ],
        [
            tensor("x", FLOAT, ["n", "length", width]),
            tensor("mask", FLOAT, ["n", "length"]),
            tensor("state", FLOAT, ["n", width]),
        ],
        [tensor("y", FLOAT, ["n", width]), tensor("next", FLOAT, ["n", width])],
        [
            constant(np.array([2], np.int64), "last"),
            constant(np.array([1], np.int64), "length_axis"),
        ],
    )


def digits_like(path: Path | str) -> str:
    """`digits` with weights at random."""
    chance = np.random.default_rng(0)
    shapes = [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (10, 512), (10,)]
    return digits(path, [chance.standard_normal(shape, np.float32) for shape in shapes])
