"""Live modules and callables, run in Python on the workers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def live_callable(source: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a worker calls: for a torch module, with tensors converted on both sides.

    A module runs under `torch.inference_mode()`, in the mode (train or eval) it is in.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        return function
    return functools.partial(_run_module, torch, function)


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
