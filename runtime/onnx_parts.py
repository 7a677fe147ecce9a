"""The nodes and tensors of an ONNX graph, read from its protobuf bytes and written back.

The device has no onnx package. For graphs that have passed `check_external_data`; field numbers are onnx.proto3's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_svd.runtime.onnx_external import walk

GRAPH, FUNCTION = 7, 25
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
"""Fields of a model, and of its graph."""

BFLOAT16 = 16
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    12: np.dtype("<u4"),
    BFLOAT16: np.dtype("<u2"),
}
"""TensorProto.DataType → what its bytes are; numpy has no bfloat16, so its bits."""


@dataclass(frozen=True)
class Node:
    """An operator: its inputs and outputs by name, its attributes that are integers or text."""

    domain: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | str]


@dataclass(frozen=True)
class Tensor:
    """An initializer: bytes of the graph, or where they lie in the data file."""

    kind: int
    shape: tuple[int, ...]
    raw: bytes | None
    offset: int = 0
    length: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """KeyError for a type that no bundle has."""
        return _DTYPES[self.kind]

    def array(self, weights: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
        """A view of its bytes as they are, in the graph or in `weights`, the data file."""
        if self.raw is not None:
            return np.frombuffer(self.raw, self.dtype).reshape(self.shape)
        return weights[self.offset : self.offset + self.length].view(self.dtype).reshape(self.shape)

    def numbers(self, data: bytes | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`data`, some of its bytes or an array of them, as numbers: float32 where they are bfloat16."""
        found = data if isinstance(data, np.ndarray) else np.frombuffer(data, self.dtype)
        return (found.astype(np.uint32) << 16).view(np.float32) if self.kind == BFLOAT16 else found


def node_at(data: bytes, start: int, end: int) -> Node:
    """The NodeProto at [start, end)."""
    names: dict[int, list[str]] = {1: [], 2: []}
    kind = domain = ""
    attributes: dict[str, int | str] = {}
    for field, wire, value, stop in walk(data, start, end):
        if wire != 2:
            continue
        if field in names:
            names[field].append(data[value:stop].decode())
        elif field == 4:
            kind = data[value:stop].decode()
        elif field == 5:
            attributes |= _attribute(data, value, stop)
        elif field == 7:
            domain = data[value:stop].decode()
    return Node(domain, kind, tuple(names[1]), tuple(names[2]), attributes)


def tensor_at(data: bytes, start: int, end: int) -> Tensor:
    """The TensorProto at [start, end)."""
    dims: list[int] = []
    kind, raw = 0, None
    entries: dict[str, str] = {}
    for field, wire, value, stop in walk(data, start, end):
        if field == 1:
            dims += [value] if wire == 0 else _varints(data, value, stop)
        elif field == 2:
            kind = value
        elif field == 9:
            raw = data[value:stop]
        elif field == 13:
            entries[text_at(data, value, stop, 1)] = text_at(data, value, stop, 2)
    if raw is not None:
        return Tensor(kind, tuple(dims), raw)
    return Tensor(kind, tuple(dims), None, int(entries["offset"]), int(entries["length"]))


def text_at(data: bytes, start: int, end: int, wanted: int) -> str:
    """The text of one field of a message, "" if it is not there."""
    for field, wire, value, stop in walk(data, start, end):
        if field == wanted and wire == 2:
            return data[value:stop].decode()
    return ""


def given_tensor(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """A TensorProto whose bytes are handed over when the session is made."""
    kind = next(number for number, own in _DTYPES.items() if own == dtype)
    text = {"location": "unpacked", "offset": "0", "length": str(math.prod(shape) * dtype.itemsize)}
    entries = [tagged(1, key.encode()) + tagged(2, value.encode()) for key, value in text.items()]
    dims = b"".join(b"\x08" + _varint(size) for size in shape)
    body = dims + b"\x10" + _varint(kind) + tagged(8, name.encode())
    return body + b"".join(tagged(13, entry) for entry in entries) + b"\x70\x01"


def field_bytes(field: int, wire: int, data: bytes, value: int, stop: int) -> bytes:
    """A field that `walk` gave, as it was."""
    if wire == 2:
        return tagged(field, data[value:stop])
    key = _varint(field << 3 | wire)
    return key + (_varint(value) if wire == 0 else data[value:stop])


def tagged(field: int, payload: bytes) -> bytes:
    """A field of bytes."""
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _attribute(data: bytes, start: int, end: int) -> dict[str, int | str]:
    name = ""
    found: int | str | None = None
    for field, wire, value, stop in walk(data, start, end):
        if field == 1 and wire == 2:
            name = data[value:stop].decode()
        elif field == 3 and wire == 0:
            found = value - 2**64 if value >= 2**63 else value
        elif field == 4 and wire == 2:
            found = data[value:stop].decode(errors="replace")
    return {} if found is None else {name: found}


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _varints(data: bytes, start: int, end: int) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data[start:end]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found
