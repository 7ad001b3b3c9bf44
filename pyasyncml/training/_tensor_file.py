"""Files of named tensors, in the safetensors format.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .._atomic import write_atomically

#: The format's name of each dtype, and an element's bytes.
DTYPES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "uint16": ("U16", 2),
    "int16": ("I16", 2),
    "uint32": ("U32", 4),
    "int32": ("I32", 4),
    "uint64": ("U64", 8),
    "int64": ("I64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
}
_NAMES = {code: name for name, (code, _) in DTYPES.items()}
_HEADER_MOST = 100 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor's elements, C-contiguous, as bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Tensor by tensor: the library's own `save` makes one more copy of everything, and
    its `save_file` a file that isn't the one we lock and sync.

    Raises `TypeError` for a dtype that the format doesn't have, and `OSError`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"checkpoint: {name} is {tensor.dtype}, which can't be saved"
            )
    # The widest first: all are aligned.
    names = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][1], name))
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.data.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for name in names:
        file.write(tensors[name].data)


def write_checkpoint(
    path: str | os.PathLike[str], header: Any, tensors: Mapping[str, Stored]
) -> None:
    """A file that is there whole or not at all: a process killed at any moment leaves
    the last good one. `header` is JSON in the metadata, beside a checksum of it all.

    Raises `TypeError` as `write_tensors`, and `OSError`.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target}: is a folder; expected a file's name")
    text = json.dumps(header)
    metadata = {"pyasyncml": text, "sha256": checksum(text, tensors)}
    write_atomically(target, lambda file: write_tensors(file, tensors, metadata))


def checksum(text: str, tensors: Mapping[str, Stored]) -> str:
    """Over the header and every tensor: name, dtype, shape, bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name]}\0".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def read_tensors(path: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors, in memory that is mapped from the file, and the metadata.

    Raises `OSError`, and `ValueError` for what isn't such a file.
    """
    with open(path, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if len(mapped) < 8:
        raise ValueError("it is too short")
    (size,) = struct.unpack("<Q", mapped[:8])
    if size > min(_HEADER_MOST, len(mapped) - 8):
        raise ValueError("its header is longer than it is")
    header = json.loads(bytes(mapped[8 : 8 + size]))
    content = mapped[8 + size :]
    if not isinstance(header, dict):
        raise ValueError("its header is no dict")
    metadata = header.pop("__metadata__", {})
    try:
        tensors = {name: _stored(entry, content) for name, entry in header.items()}
        return tensors, {str(key): str(metadata[key]) for key in metadata}
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header is damaged: {error!r}") from error


def _stored(entry: dict[str, Any], content: memoryview) -> Stored:
    name = _NAMES[entry["dtype"]]
    start, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    expected = DTYPES[name][1]
    for size in shape:
        expected *= size
    if (
        min(shape, default=0) < 0
        or not 0 <= start <= end <= len(content)
        or end - start != expected
    ):
        raise ValueError("it is truncated, or a tensor isn't where its header says")
    return Stored(name, shape, content[start:end])
