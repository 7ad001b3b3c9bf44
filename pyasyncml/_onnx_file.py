"""Whether a file holds an ONNX model. It has no magic number: it is a protobuf message
(ModelProto), told by its fields' numbers and wire types."""

from __future__ import annotations

from typing import BinaryIO

_VARINT, _BYTES = 0, 2
#: Of each field of ModelProto: its wire type.
_FIELDS = {
    1: _VARINT,  # ir_version
    2: _BYTES,  # producer_name
    3: _BYTES,  # producer_version
    4: _BYTES,  # domain
    5: _VARINT,  # model_version
    6: _BYTES,  # doc_string
    7: _BYTES,  # graph
    8: _BYTES,  # opset_import
    14: _BYTES,  # metadata_props
    20: _BYTES,  # training_info
    25: _BYTES,  # functions
    26: _BYTES,  # configuration
}
_GRAPH = 7
_MOST_FIELDS = 10_000


def is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the file, of `size` bytes, holds an ONNX model, be it cut off.

    ONNX Runtime's own format (.ort) counts as one.
    """
    file.seek(0)
    if file.read(8)[4:] == b"ORTM":
        return True
    file.seek(0)
    seen = set()
    for _ in range(_MOST_FIELDS):
        tag = _varint(file)
        if tag is None:
            break
        field, wire_type = tag >> 3, tag & 7
        if _FIELDS.get(field) != wire_type:
            return False
        value = _varint(file)
        if value is None:
            break
        seen.add(field)
        if field == 1 and not 1 <= value <= 1000:
            return False
        if wire_type == _BYTES:
            if file.tell() + value > size:
                break  # cut off
            file.seek(value, 1)
    # A graph alone could be many another message's seventh field.
    return _GRAPH in seen and len(seen) > 1


def _varint(file: BinaryIO) -> int | None:
    """None at the end of the file, or where there is none."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
