"""What `load(options=…)` takes for ONNX models, by onnxruntime's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import Devices
from ._onnxruntime import settings

Items = list[tuple[int, str, str]]

# The order of enum ort_setting_kind in csrc/backends/onnxruntime/settings.h.
_CONFIG, _PROVIDER, _PROVIDER_OPTION, _OUTPUT, _OPTIMIZED = range(5)

#: GraphOptimizationLevel of ONNX Runtime's C interface.
_LEVELS = {"disable": 0, "basic": 1, "extended": 2, "all": 99}

_CPU = "CPUExecutionProvider"


def parse(options: Mapping[str, Any], devices: Devices) -> Any:
    """The options as a capsule for the backend.

    Raises `TypeError` and `ValueError`, which name the option.
    """
    numbers = {
        "graph_optimization_level": -1,
        "enable_mem_pattern": -1,
        "enable_cpu_mem_arena": -1,
    }
    parsers: dict[str, Callable[[Any], Items]] = {
        "providers": _providers,
        "optimized_model_filepath": _optimized_model,
        "config": _config,
        "outputs": _outputs,
    }
    items: Items = []
    for name, value in options.items():
        if name == "graph_optimization_level":
            numbers[name] = _level(value)
        elif name in numbers:
            if not isinstance(value, bool):
                raise _wrong_type(name, "a bool", value)
            numbers[name] = int(value)
        elif name in parsers:
            items += parsers[name](value)
        else:
            known = ", ".join([*numbers, *parsers])
            raise ValueError(
                f"options: the onnxruntime backend has no {name!r}; it has {known}"
            )
    if "providers" in options and any(device != "cpu" for device, _ in devices):
        raise ValueError(
            "options: providers: they say what the model runs on: give them or device="
        )
    level, pattern, arena = numbers.values()
    return settings(level, pattern, arena, tuple(items))


def _wrong_type(name: str, expected: str, value: Any) -> TypeError:
    return TypeError(
        f"options: {name}: expected {expected}, got {type(value).__name__}"
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a str", value)
    if not value or "\0" in value:
        raise ValueError(f"options: {name}: expected some text, got {value!r}")
    return value


def _level(value: Any) -> int:
    if not isinstance(value, str):
        raise _wrong_type("graph_optimization_level", "a str", value)
    if value not in _LEVELS:
        raise ValueError(
            "options: graph_optimization_level: expected one of "
            f"{', '.join(map(repr, _LEVELS))}, got {value!r}"
        )
    return _LEVELS[value]


def _providers(value: Any) -> Items:
    pairs = "a sequence of names or (name, {option: value}) pairs"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong_type("providers", pairs, value)
    if not value:
        raise ValueError("options: providers: expected at least one")
    items: Items = []
    for provider in value:
        name, options = provider, {}
        if isinstance(provider, Sequence) and not isinstance(provider, str):
            if len(provider) != 2 or not isinstance(provider[1], Mapping):
                raise ValueError(
                    f"options: providers: expected {pairs}, got {provider!r}"
                )
            name, options = provider
        name = _text("providers", name)
        if name == _CPU and options:
            raise ValueError(
                f"options: providers: {_CPU} has no options; what there is for the "
                "CPU are the session's"
            )
        items.append((_PROVIDER, name, ""))
        items += [
            (_PROVIDER_OPTION, _text(f"providers: {name}", key), _plain(name, setting))
            for key, setting in options.items()
        ]
    return items


def _plain(provider: str, value: Any) -> str:
    """A provider's options are text, which numbers may stand for."""
    if isinstance(value, (bool, int, float)):
        return str(int(value) if isinstance(value, bool) else value)
    return _text(f"providers: {provider}", value)


def _optimized_model(value: Any) -> Items:
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong_type("optimized_model_filepath", "a path", value)
    return [(_OPTIMIZED, _text("optimized_model_filepath", os.fspath(value)), "")]


def _config(value: Any) -> Items:
    if not isinstance(value, Mapping):
        raise _wrong_type("config", "a mapping of str to str", value)
    return [
        (_CONFIG, _text("config", key), _text("config", entry))
        for key, entry in value.items()
    ]


def _outputs(value: Any) -> Items:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong_type("outputs", "a sequence of names", value)
    names = [_text("outputs", name) for name in value]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"options: outputs: expected names, each of them once, got {value!r}"
        )
    return [(_OUTPUT, name, "") for name in names]
