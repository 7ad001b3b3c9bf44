"""Dynamic batching: what may be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# enum paml_setting_kind in csrc/engine/batching.h.
_INPUT_AXIS, _OUTPUT_AXIS, _FILL, _MASK, _PADDED_INPUT, _PADDED_OUTPUT, _BUCKET = range(
    7
)

# DLDataTypeCode and bits of what a mask may be made of.
_MASK_DTYPES = {
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "float32": (2, 32),
    "float64": (2, 64),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "bool": (6, 8),
}
_PLACES_MOST = 64
_AXES_MOST = 2

Place = str | int


@dataclass(frozen=True)
class Pad:
    """How requests of different lengths share a batch: by padding named axes.

    `inputs`: for each named axis, which inputs have it and where: a mapping from the
    axis's name to ``{input: axis}``, inputs by name or by position; axis 0 is the
    batch. All inputs of one request that have an axis must agree about its length.
    `outputs`: the same for the outputs, which are cut back to the request's own length
    (by position among the output tensors). `fill`: ``{input: value}``, what padding is
    filled with, 0 where it isn't said. `mask`: an input that the engine makes where the
    caller leaves it out: shape (rows, length), 1 for what is real along the first axis
    and 0 for padding, of dtype `mask_dtype`.

    >>> Pad({"length": {"input_ids": 1}}, mask="attention_mask")  # doctest: +ELLIPSIS
    Pad(inputs={'length': {'input_ids': 1}}, ...)
    """

    inputs: Mapping[str, Mapping[Place, int]]
    outputs: Mapping[str, Mapping[Place, int]] = field(default_factory=dict)
    fill: Mapping[Place, float] = field(default_factory=dict)
    mask: Place | None = None
    mask_dtype: str = "int64"

    def __post_init__(self) -> None:
        if not self.inputs or len(self.inputs) > _AXES_MOST:
            raise ValueError(f"Pad: inputs: expected 1 to {_AXES_MOST} named axes")
        for what, axes in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, places in axes.items():
                if name not in self.inputs:
                    raise ValueError(
                        f"Pad: {what}: {name!r} is no axis of the inputs, which have "
                        f"{', '.join(map(repr, self.inputs))}"
                    )
                if what == "inputs" and not places:
                    raise ValueError(f"Pad: inputs: no input has the axis {name!r}")
                for place, axis in places.items():
                    _check_place(f"Pad: {what}[{name!r}]", place)
                    _check_int(f"Pad: {what}[{name!r}][{place!r}]", axis, 0)
        for place in self.fill:
            _check_place("Pad: fill", place)
        if self.mask is not None:
            _check_place("Pad: mask", self.mask)
        if self.mask_dtype not in _MASK_DTYPES:
            raise ValueError(
                f"Pad: mask_dtype: expected one of {', '.join(_MASK_DTYPES)}, got "
                f"{self.mask_dtype!r}"
            )


@dataclass(frozen=True)
class Batching:
    """Dynamic batching of independent requests along axis 0.

    Asking for it declares that axis 0 of every input and output of the model is the
    batch: requests that agree about everything else (dtypes, the other axes, numbers,
    strings) share a run of up to `max_rows` rows. A request may have many rows; one of
    more than `max_rows` is cut up and joined again. Outputs whose rows don't match are
    an error that says so. Results of a shared run may differ from those of a single one
    in the last bits where the framework's kernels do.

    `max_delay`: seconds that a batch which isn't full may wait for more; 0, the
    default, takes what is waiting when an instance is free. `pad`: axes that are
    padded, see `Pad`; requests of similar lengths are put together, so that padding
    adds no more than a third. `buckets`: for a padded axis, the lengths it is padded to
    (ascending; a longer request is an `InputError`), ``{"length": (32, 64, 128)}``;
    without, it is padded to the longest of the batch. `axes`: inputs whose batch axis
    isn't 0, ``{"state": 1}``; `output_axes`: the same for outputs.

    A run takes 4096 requests at most, and where it is padded to the longest, or chosen
    by deadlines, 256 (of as many rows as `max_rows` allows): these are compared with
    each other while the queue is locked.

    Triton calls this dynamic batching, with `max_rows` its max_batch_size and
    `max_delay` its max_queue_delay.
    """

    max_rows: int = 32
    max_delay: float = 0.0
    pad: Pad | None = None
    buckets: Mapping[str, Sequence[int]] | None = None
    axes: Mapping[Place, int] = field(default_factory=dict)
    output_axes: Mapping[Place, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_int("Batching: max_rows", self.max_rows, 1)
        if not isinstance(self.max_delay, (int, float)) or not (
            0 <= self.max_delay <= 3600
        ):
            raise ValueError(
                f"Batching: max_delay: expected seconds, 0 to 3600, got "
                f"{self.max_delay!r}"
            )
        if self.pad is not None and not isinstance(self.pad, Pad):
            raise TypeError(
                f"Batching: pad: expected a Pad, got {type(self.pad).__name__}"
            )
        for name, buckets in (self.buckets or {}).items():
            if self.pad is None or name not in self.pad.inputs:
                raise ValueError(f"Batching: buckets: {name!r} is no axis of pad=")
            for size in buckets:
                _check_int(f"Batching: buckets[{name!r}]", size, 1)
            if not buckets or list(buckets) != sorted(set(buckets)):
                raise ValueError(
                    f"Batching: buckets[{name!r}]: expected ascending lengths, got "
                    f"{buckets!r}"
                )
        for what, axes in (("axes", self.axes), ("output_axes", self.output_axes)):
            for place, axis in axes.items():
                _check_place(f"Batching: {what}", place)
                _check_int(f"Batching: {what}[{place!r}]", axis, 0)


def _check_int(what: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what}: expected an int, {least} or more, got {value!r}")


def _check_place(what: str, place: Any) -> None:
    if isinstance(place, bool) or not isinstance(place, (str, int)):
        raise TypeError(f"{what}: expected a name or a position, got {place!r}")
    if isinstance(place, int) and not 0 <= place < _PLACES_MOST:
        raise ValueError(
            f"{what}: expected a position below {_PLACES_MOST}, got {place}"
        )


Setting = tuple[int, int, str | None, int, float]


def _setting(kind: int, which: int, place: Place | None, value: float) -> Setting:
    if isinstance(place, int):
        return kind, which, None, place, float(value)
    return kind, which, place, 0, float(value)


def describe(batching: Batching | None) -> tuple[Any, ...] | None:
    """What the C side reads (csrc/python/batching_object.c)."""
    if batching is None:
        return None
    settings = [_setting(_INPUT_AXIS, 0, *item) for item in batching.axes.items()]
    settings += [
        _setting(_OUTPUT_AXIS, 0, *item) for item in batching.output_axes.items()
    ]
    pad = batching.pad
    names: tuple[str, ...] = ()
    mask_dtype = (0, 0)
    if pad is not None:
        names = tuple(pad.inputs)
        mask_dtype = _MASK_DTYPES[pad.mask_dtype]
        settings += [_setting(_FILL, 0, *item) for item in pad.fill.items()]
        if pad.mask is not None:
            settings.append(_setting(_MASK, 0, pad.mask, 0))
        for which, name in enumerate(names):
            places = dict(pad.inputs[name])
            if which == 0 and pad.mask is not None:
                places.setdefault(pad.mask, 1)  # one that the caller gives is padded
            for kind, axes in (
                (_PADDED_INPUT, places),
                (_PADDED_OUTPUT, pad.outputs.get(name, {})),
            ):
                settings += [_setting(kind, which, *item) for item in axes.items()]
            for size in (batching.buckets or {}).get(name, ()):
                settings.append(_setting(_BUCKET, which, None, size))
    return (
        batching.max_rows,
        int(batching.max_delay * 1e9),
        names,
        *mask_dtype,
        tuple(settings),
    )
