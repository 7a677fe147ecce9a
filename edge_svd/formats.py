"""How one weight matrix lies in a checkpoint and in a bundle: names, dtypes and shapes of its tensors.

The planner counts bytes from here, compress writes these tensors and export copies them, so the three cannot disagree.

A 16-bit matrix is kept as 16-bit integers on a scale per row (`fp16` on the command line: two bytes a weight).
onnxruntime's CPU provider widens IEEE halves to fp32, four resident bytes; 16-bit integers split into two int8 planes
that the int8 kernels take as they are, and on rows without outliers they round more finely than halves do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_svd.errors import InputError

ALIGNMENT = 16
"""Input widths and ranks are stored in multiples of this, the smallest block of onnxruntime's MatMulNBits kernel."""

INT8_LIMIT = 127
INT16_LIMIT = 127 * 256
"""Largest magnitude of a 16-bit weight, so that its high plane stays within ±127."""

KINDS = ("int8", "int16", "low-rank")
ITEM_BYTES = {"int8": 1, "int16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class SiteFormat:
    """The format chosen for one matrix; `k8` and `k16` count the int8 and 16-bit components of a low-rank one."""

    kind: str
    k8: int = 0
    k16: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Unknown format {self.kind!r}; known formats are {', '.join(KINDS)}.")
        if self.kind == "low-rank":
            if self.k8 < 0 or self.k16 < 0 or self.k8 + self.k16 == 0 or self.k8 % ALIGNMENT or self.k16 % ALIGNMENT:
                raise InputError(
                    f"A low-rank format needs ranks that are multiples of {ALIGNMENT} and not both zero, "
                    f"got {self.k8} and {self.k16}."
                )
        elif self.k8 or self.k16:
            raise InputError(f"Format {self.kind!r} takes no ranks, got {self.k8} and {self.k16}.")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "k8": self.k8, "k16": self.k16} if self.kind == "low-rank" else {"kind": self.kind}

    @classmethod
    def from_json(cls, value: Any) -> SiteFormat:
        """Strict inverse of `to_json`; raises InputError on anything else."""
        if (
            not isinstance(value, Mapping)
            or not isinstance(value.get("kind"), str)
            or set(value) - {"kind", "k8", "k16"}
        ):
            raise InputError(f"A site's format must be an object with kind, k8 and k16, got {value!r}.")
        ranks = {key: value.get(key, 0) for key in ("k8", "k16")}
        if any(type(rank) is not int for rank in ranks.values()):
            raise InputError(f"Ranks of a site's format must be integers, got {value!r}.")
        return cls(value["kind"], **ranks)


def padded(width: int) -> int:
    """`width` rounded up to the storage alignment."""
    return -(-width // ALIGNMENT) * ALIGNMENT


def tensors(shape: tuple[int, int], fmt: SiteFormat) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Suffix → (dtype, shape) of the tensors that hold an m x n matrix in this format."""
    m, n = shape[0], padded(shape[1])
    if fmt.kind == "int8":
        return {"q8": ("int8", (m, n)), "s8": ("bfloat16", (m,))}
    if fmt.kind == "int16":
        return {"q16": ("int16", (m, n)), "s16": ("bfloat16", (m,))}
    result: dict[str, tuple[str, tuple[int, ...]]] = {}
    if fmt.k8:
        result |= {"b8": ("int8", (m, fmt.k8)), "a8": ("int8", (fmt.k8, n)), "s8": ("bfloat16", (fmt.k8,))}
    if fmt.k16:
        result |= {"b16": ("int16", (m, fmt.k16)), "a16": ("int16", (fmt.k16, n)), "s16": ("bfloat16", (fmt.k16,))}
    return result


def weight_bytes(shape: tuple[int, int], fmt: SiteFormat) -> int:
    """Bytes of those tensors on disk, without alignment between them."""
    return sum(ITEM_BYTES[dtype] * math.prod(dims) for dtype, dims in tensors(shape, fmt).values())
