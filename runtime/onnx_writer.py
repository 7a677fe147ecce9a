"""Just enough protobuf to write a small ONNX graph: the device side measures operators and has no onnx package."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

FLOAT, UINT8, INT8, INT32, INT64, BFLOAT16 = 1, 2, 3, 6, 7, 16
"""TensorProto.DataType."""

MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def external(name: str, dtype: int, dims: Sequence[int], location: str, offset: int, length: int) -> bytes:
    """An initializer whose bytes lie in the file `location`."""
    entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
    places = b"".join(_field(13, _field(1, key.encode()) + _field(2, value.encode())) for key, value in entries)
    return _tensor(name, dtype, dims) + places + _field(14, 1)


def inline(name: str, dtype: int, dims: Sequence[int], data: bytes) -> bytes:
    """An initializer whose little-endian bytes lie in the graph."""
    return _tensor(name, dtype, dims) + _field(9, data)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: int | float) -> bytes:
    """An operator with integer and float attributes; its name is its first output's."""
    parts = [_field(1, value.encode()) for value in inputs] + [_field(2, value.encode()) for value in outputs]
    parts += [_field(3, outputs[0].encode()), _field(4, op.encode())]
    for key, value in attributes.items():
        number = _field(2, value) if isinstance(value, float) else _field(3, value)
        parts.append(_field(5, _field(1, key.encode()) + number + _field(20, 1 if isinstance(value, float) else 2)))
    return b"".join([*parts, _field(7, domain.encode())])


def value(name: str, dtype: int, dims: Sequence[int | str]) -> bytes:
    """A typed graph input or output; strings are free dimensions."""
    shape = b"".join(_field(1, _field(1, dim) if isinstance(dim, int) else _field(2, dim.encode())) for dim in dims)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, dtype) + _field(2, shape)))


def model(
    nodes: Iterable[bytes], initializers: Iterable[bytes], inputs: Iterable[bytes], outputs: Iterable[bytes]
) -> bytes:
    """A serialised ModelProto of the parts that the functions above made."""
    graph = b"".join(
        [
            *(_field(1, part) for part in nodes),
            _field(2, b"probe"),
            *(_field(5, part) for part in initializers),
            *(_field(11, part) for part in inputs),
            *(_field(12, part) for part in outputs),
        ]
    )
    opsets = b"".join(
        _field(8, _field(1, domain) + _field(2, version)) for domain, version in ((b"", _OPSET), (b"com.microsoft", 1))
    )
    return _field(1, _IR_VERSION) + _field(2, b"edge-svd") + _field(7, graph) + opsets


def _tensor(name: str, dtype: int, dims: Sequence[int]) -> bytes:
    return b"".join(_field(1, dim) for dim in dims) + _field(2, dtype) + _field(8, name.encode())


def _field(number: int, content: int | float | bytes) -> bytes:
    if isinstance(content, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(content)) + content
    if isinstance(content, float):
        return _varint(number << 3 | _FIXED32) + struct.pack("<f", content)
    return _varint(number << 3 | _VARINT) + _varint(content)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
