"""Live modules and callables, run in Python on the workers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def live_callable(source: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a worker calls: for a torch module, with tensors converted on both sides;
    for what is Keras's or TensorFlow's, with numpy arrays for tensors coming out.

    A module runs under `torch.inference_mode()`, in the mode (train or eval) it is in.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module):
        return functools.partial(_run_module, torch, function)
    if isinstance(source, types := _tensorflow_types()) or isinstance(function, types):
        return functools.partial(_run_tensorflow, function)
    return function


def _tensorflow_types() -> tuple[type, ...]:
    """Whose calls give tensors that are no numpy arrays: of what is imported."""
    found: tuple[type, ...] = ()
    for path in (
        "keras.layers.Layer",  # models are some
        "tensorflow.Module",
        "tensorflow.types.experimental.Callable",  # of tf.function and SavedModels
    ):
        item = _imported(path)
        found += (item,) if isinstance(item, type) else ()
    return found


def _imported(path: str) -> Any:
    """What is there; None also where another thread has come half through importing
    it."""
    package, *names = path.split(".")
    item: Any = sys.modules.get(package)
    for name in names:
        item = getattr(item, name, None)
    return item


def _run_tensorflow(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return _map(_array, function(*args, **kwargs))


def _array(leaf: Any) -> Any:
    """A tensor of TensorFlow's, or of whatever Keras runs on, as a SavedModel's output
    would be: of no axes too, and with objects for strings."""
    import numpy as np

    kinds = _imported("tensorflow.Tensor"), _imported("tensorflow.Variable")
    if any(kind is not None and isinstance(leaf, kind) for kind in kinds):
        value = leaf.numpy()
        return np.array(value, object) if leaf.dtype == "string" else np.asarray(value)
    is_tensor = _imported("keras.ops.is_tensor")
    to_numpy = _imported("keras.ops.convert_to_numpy")
    if is_tensor is not None and to_numpy is not None and is_tensor(leaf):
        return to_numpy(leaf)
    return leaf


def _run_module(
    torch: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    seen: set[bool] = set()
    with torch.inference_mode():
        outputs = function(
            *(_to_torch(torch, arg, seen) for arg in args),
            **{name: _to_torch(torch, arg, seen) for name, arg in kwargs.items()},
        )
    # All tensors torch: torch comes back; otherwise numpy.
    return outputs if seen == {True} else _to_numpy(torch, outputs)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same structure of tuples, lists and dicts with its leaves replaced."""
    if isinstance(tree, tuple):
        items = [_map(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [_map(function, item) for item in tree]
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)


def _to_torch(torch: Any, tree: Any, seen: set[bool]) -> Any:
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            seen.add(True)
            return leaf
        if isinstance(leaf, (bool, int, float, str, bytes, type(None))):
            return leaf
        if hasattr(leaf, "__dlpack__") or hasattr(leaf, "__array__"):
            seen.add(False)
            return torch.as_tensor(leaf)
        return leaf

    return _map(convert, tree)


def _to_numpy(torch: Any, tree: Any) -> Any:
    return _map(
        lambda leaf: leaf.numpy(force=True) if isinstance(leaf, torch.Tensor) else leaf,
        tree,
    )
