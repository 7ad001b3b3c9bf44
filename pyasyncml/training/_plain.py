"""Python values as JSON and back, without loss: tuples, counters, sets of numbers,
tensors. What a scheduler's and an optimizer's state is made of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_TAG = "$"


def encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """A value that `json.dumps` takes. Tensors and arrays are copied to `tensors`,
    under the name of their place. Raises `TypeError` that names the place of what isn't
    known."""
    import numpy as np
    import torch

    if value is None or isinstance(value, (bool, int, float, str)):
        if type(value) not in (type(None), bool, int, float, str):
            value = value.item() if isinstance(value, np.generic) else value
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {_TAG: "bytes", "hex": value.hex()}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if isinstance(value, np.ndarray):
            tensors[where] = torch.tensor(value)
            return {_TAG: "array", "name": where}
        tensors[where] = value.detach().clone()
        return {_TAG: "tensor", "name": where}
    if isinstance(value, list):
        return [encode(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]
    if isinstance(value, (tuple, set, frozenset)):
        kind = next(k for k in (tuple, set, frozenset) if isinstance(value, k))
        items = [encode(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]
        return {_TAG: kind.__name__, "items": items}
    if isinstance(value, dict):
        kind_name = "Counter" if isinstance(value, Counter) else "dict"
        pairs = [
            [encode(k, tensors, f"{where}.key"), encode(v, tensors, f"{where}.{k}")]
            for k, v in value.items()
        ]
        plain = kind_name == "dict" and all(isinstance(k, str) for k in value)
        if plain and _TAG not in value:
            return dict(pairs)
        return {_TAG: kind_name, "items": pairs}
    raise TypeError(
        f"checkpoint: {where} is a {type(value).__module__}."
        f"{type(value).__qualname__}, "
        "which can't be saved; numbers, strings, tensors, and lists, tuples and "
        "dicts of them can"
    )


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `encode` was given. Raises `KeyError` or `ValueError` for what it didn't
    make."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: decode(item, tensors) for key, item in value.items()}
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "array":
        return tensors[value["name"]].numpy()
    items = [decode(item, tensors) for item in value["items"]]
    if kind in ("dict", "Counter"):
        return Counter(dict(items)) if kind == "Counter" else dict(items)
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
    raise ValueError(f"a value of unknown kind {kind!r}")
