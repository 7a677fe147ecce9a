"""A reader of GGUF files that trusts nothing: every count, length and offset is checked against the size of the
file.

Reads the metadata of a model with 50,000 tokens in a few tenths of a second, and one dequantised tensor at a time.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: shape in row-major order, ggml's type number, first byte and number of bytes in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """An opened, checked GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Map and check a file; InputError if it is not GGUF, cut short, or contradicts itself."""
        try:
            with open(path, "rb") as handle:
                data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"The GGUF file {path} cannot be read ({error}).") from None
        cursor = _Cursor(data, path)
        if data[:4] != b"GGUF":
            raise InputError(f"The file {path} is not a GGUF file: it does not start with GGUF.")
        cursor.offset = 4
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise InputError(f"The GGUF file {path} has version {version}; versions 2 and 3 are supported.")
        tensor_count, pair_count = cursor.count(24), cursor.count(13)
        metadata = {}
        for _ in range(pair_count):
            key = cursor.string()
            metadata[key] = cursor.value(cursor.scalar("I"))
        tensors = _tensors(cursor, tensor_count, metadata.get("general.alignment", 32))
        return cls(path, metadata, tensors, data)

    def read(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One tensor as fresh float32; InputError if its quantisation is unknown."""
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, tensor.size, tensor.start)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        try:
            values = dequantize(rows, GGMLQuantizationType(tensor.type))
        except (NotImplementedError, ValueError) as error:
            raise InputError(f"The tensor {name} of {self.path} cannot be dequantised ({error}).") from None
        return np.array(values.reshape(tensor.shape), dtype=np.float32)


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, GgufTensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    infos = []
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.scalar("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise cursor.damaged(f"the tensor {name} has {dimensions} dimensions")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
        infos.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise cursor.damaged(f"the alignment is {alignment}")
    base = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        if kind not in {member.value for member in GGMLQuantizationType}:
            raise cursor.damaged(f"the tensor {name} has the unknown type {kind}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if math.prod(shape) == 0 or shape[-1] % block:
            raise cursor.damaged(f"the tensor {name} has the shape {shape}")
        size = math.prod(shape) // block * block_bytes
        if base + offset + size > len(cursor.data):
            raise cursor.damaged(f"the tensor {name} ends after the end of the file")
        tensors[name] = GgufTensor(name, shape, kind, base + offset, size)
    return tensors


class _Cursor:
    """A position in the mapped file; every read is bounded by its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.offset = data, path, 0

    def damaged(self, why: str) -> InputError:
        return InputError(f"The GGUF file {self.path} is truncated or damaged: {why}; download it again.")

    def scalar(self, code: str) -> Any:
        try:
            (value,) = struct.unpack_from("<" + code, self.data, self.offset)
        except struct.error:
            raise self.damaged("its header ends too early") from None
        self.offset += struct.calcsize("<" + code)
        return value

    def count(self, least: int) -> int:
        """A number of items of which each takes at least `least` bytes of what remains."""
        value = int(self.scalar("Q"))
        if value * least > len(self.data) - self.offset:
            raise self.damaged(f"it announces {value} items")
        return value

    def string(self) -> str:
        length = self.count(1)
        raw = self.data[self.offset : self.offset + length]
        self.offset += length
        return raw.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item = self.scalar("I")
            if item == _STRING:
                return [self.string() for _ in range(self.count(8))]
            if item not in _SCALARS:
                raise self.damaged(f"an array holds the unknown type {item}")
            count = self.count(struct.calcsize("<" + _SCALARS[item]))
            values = list(struct.unpack_from(f"<{count}{_SCALARS[item]}", self.data, self.offset))
            self.offset += struct.calcsize(f"<{count}{_SCALARS[item]}")
            return values
        if kind not in _SCALARS:
            raise self.damaged(f"a value has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])
