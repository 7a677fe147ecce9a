"""Reads where an ONNX file keeps its weights, straight from the protobuf bytes: the onnx package is not on the device.

onnxruntime opens whatever file a tensor's `location` names and maps `offset` and `length` as it finds them, so both are
checked here before it sees the model. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from edge_svd.runtime.errors import BundleError

MAX_GRAPH_BYTES = 64_000_000
"""Largest graph file read; graphs hold no weights, so they stay far below."""

_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
_STRING = 8
_EXTERNAL = 1
_MAX_ELEMENTS = 2**62

# Message kinds and the fields that lead to tensors: kind → {field number: kind of the message inside}.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "refused", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "refused"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "refused", 23: "refused"},
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in the weights file at [offset, offset + length)."""

    name: str
    offset: int
    length: int


def check_external_data(graph: bytes, *, name: str, location: str, size: int) -> list[ExternalTensor]:
    """Every external tensor of the ONNX file `name`, sorted by offset.

    `location` is the only file that tensors may name and `size` its length in bytes. BundleError says which tensor is
    at fault: a malformed message, another location, a range outside the file, a length that disagrees with the shape,
    ranges that overlap without being equal.
    """
    found: list[ExternalTensor] = []
    try:
        for start, end in _tensors(graph):
            tensor = _external(graph, start, end, location, size)
            if tensor is not None:
                found.append(tensor)
    except _Fault as fault:
        raise BundleError(f"The graph {name} {fault}; do not use this bundle.") from None
    found.sort(key=lambda tensor: (tensor.offset, tensor.length))
    for before, after in pairwise(found):
        if before.offset + before.length > after.offset and (before.offset, before.length) != (
            after.offset,
            after.length,
        ):
            raise BundleError(
                f"In {name}, the weights {before.name!r} and {after.name!r} overlap in {location}; do not use this "
                "bundle."
            )
    return found


class _Fault(Exception):
    """What is wrong, as the end of a sentence that begins with the graph's name."""


def _tensors(data: bytes) -> Iterator[tuple[int, int]]:
    """Byte ranges of every TensorProto; a work list instead of recursion, since nesting is the attacker's choice."""
    work = [("model", 0, len(data))]
    while work:
        kind, start, end = work.pop()
        inside = _INSIDE[kind]
        for field, wire, value, stop in walk(data, start, end):
            target = inside.get(field)
            if target is None:
                continue
            if wire != 2:
                raise _Fault(f"is malformed: field {field} of a {kind} has the wrong wire type")
            if target == "refused":
                raise _Fault("holds sparse tensors or training information, which no bundle has")
            if target == "tensor":
                yield value, stop
            else:
                work.append((target, value, stop))


def walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, value or start of the payload, end of the payload) of one message."""
    position = start
    while position < end:
        key = data[position]
        if key < 0x80:
            position += 1
        else:
            key, position = _varint(data, position, end)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise _Fault("is malformed: it has a field numbered 0")
        if wire == 2:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise _Fault("is malformed: a field reaches past the end of its message")
            yield field, wire, position, position + length
            position += length
        elif wire == 0:
            value, position = _varint(data, position, end)
            yield field, wire, value, position
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            if width > end - position:
                raise _Fault("is malformed: a field reaches past the end of its message")
            yield field, wire, position, position + width
            position += width
        else:
            raise _Fault(f"is malformed: it uses wire type {wire}")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise _Fault("is malformed: a number has no end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _external(data: bytes, start: int, end: int, location: str, size: int) -> ExternalTensor | None:
    """Check one TensorProto; None if its data lie inside the graph."""
    dims: list[int] = []
    data_type = place = 0
    raw: int | None = None
    name = ""
    entries: dict[str, str] = {}
    for field, wire, value, stop in walk(data, start, end):
        if field == 1 and wire == 0:
            dims.append(_signed(value))
        elif field == 1 and wire == 2:
            position = value
            while position < stop:
                item, position = _varint(data, position, stop)
                dims.append(_signed(item))
        elif field == 2 and wire == 0:
            data_type = value
        elif field == 8 and wire == 2:
            name = _text(data, value, stop)
        elif field == 9 and wire == 2:
            raw = stop - value
        elif field == 13 and wire == 2:
            key, text = _entry(data, value, stop)
            if key in entries:
                raise _Fault(f"gives the weight {name[:80]!r} two entries {key[:40]!r}")
            entries[key] = text
        elif field == 14 and wire == 0:
            place = value
        elif field in (1, 2, 8, 9, 13, 14):
            raise _Fault(f"is malformed: field {field} of a tensor has the wrong wire type")
    label = f"the weight {name[:80]!r}"
    if (place == _EXTERNAL) != bool(entries) or place not in (0, _EXTERNAL):
        raise _Fault(f"does not say clearly where {label} lies")
    count = 1
    for dim in dims:
        if dim < 0:
            raise _Fault(f"gives {label} the negative dimension {dim}")
        count *= dim
        if count > _MAX_ELEMENTS:
            raise _Fault(f"gives {label} dimensions whose product overflows")
    if data_type != _STRING and data_type not in _BITS:
        raise _Fault(f"gives {label} the unknown data type {data_type}")
    if raw is not None and (data_type == _STRING or raw != _bytes(count, data_type)):
        raise _Fault(f"gives {label} {raw} bytes, which do not fit its shape {dims}")
    if not entries:
        return None
    if raw is not None:
        raise _Fault(f"keeps {label} both inside and outside")
    if set(entries) != {"location", "offset", "length"}:
        raise _Fault(f"must give {label} exactly a location, an offset and a length, not {sorted(entries)}"[:300])
    if entries["location"] != location:
        raise _Fault(f"looks for {label} in {entries['location'][:80]!r} instead of {location}")
    offset, length = _decimal(entries["offset"], label), _decimal(entries["length"], label)
    if data_type == _STRING or length != _bytes(count, data_type):
        raise _Fault(f"gives {label} {length} bytes, which do not fit its shape {dims}")
    if offset + length > size:
        raise _Fault(f"looks for {label} at {offset} + {length} in {location}, which has only {size} bytes")
    return ExternalTensor(name, offset, length)


def _bytes(count: int, data_type: int) -> int:
    return (count * _BITS[data_type] + 7) // 8


def _entry(data: bytes, start: int, end: int) -> tuple[str, str]:
    key = text = ""
    for field, wire, value, stop in walk(data, start, end):
        if field in (1, 2):
            if wire != 2:
                raise _Fault("is malformed: an external-data entry is not text")
            if field == 1:
                key = _text(data, value, stop)
            else:
                text = _text(data, value, stop)
    return key, text


def _text(data: bytes, start: int, end: int) -> str:
    try:
        return data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise _Fault("is malformed: a name is not UTF-8") from None


def _decimal(text: str, label: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise _Fault(f"gives {label} the offset or length {text[:40]!r}, which is not a number of bytes")
    return int(text)
