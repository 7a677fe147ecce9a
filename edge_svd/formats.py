"""How one weight matrix lies in a checkpoint and in a bundle: names, dtypes and shapes of its tensors.

The planner counts bytes from here, compress writes these tensors and export copies them, so the three cannot disagree.

A 16-bit matrix is kept as 16-bit integers on a scale per row (`fp16` on the command line: two bytes a weight).
onnxruntime's CPU provider widens IEEE halves to fp32, four resident bytes; 16-bit integers split into two int8 planes
that the int8 kernels take as they are, and on rows without outliers they round more finely than halves do.

A matrix of rank k has only k (m + n - k) degrees of freedom, k² fewer than two factors hold: where k of its rows span
the others, those k rows and the coefficients of the rest say everything, and so do k columns. Those are the
`row-pivoted` and `column-pivoted` formats (Zhao et al. 2025, "Pivoting Factorization", arXiv 2501.19090; as an
interpolative decomposition, Cheng et al. 2005), never larger than the dense matrix but for the order of its rows.

`trellis` is a flash format: 1 to 6 bits a weight in a trellis code (`trellis_code`), which the graph turns
into int8 rows while it is loaded. `table` is that for a vocabulary-sized matrix, its rows in groups of unequal bits.

`corrected` is a matrix in blocks of few bits plus two thin int8 factors that make good the largest part of its error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_svd.errors import InputError

ALIGNMENT = 16
"""Input widths and ranks are stored in multiples of this, the smallest block of onnxruntime's MatMulNBits kernel."""

INT4_LIMIT = 7
INT8_LIMIT = 127
INT16_LIMIT = 127 * 256
"""Largest magnitude of a 16-bit weight, so that its high plane stays within ±127."""

PIVOTED = ("row-pivoted", "column-pivoted")
FACTORED = ("low-rank", *PIVOTED)
CODED = ("trellis", "table")
BLOCKED = ("blocks", "corrected")
KV_CACHES = {"float32": 4, "int8": 1}
"""Kind of KV cache → bytes of one of its numbers. int8 has a scale for every channel of every key and value head."""

KINDS = ("int8", "int16", *FACTORED, *CODED, *BLOCKED)
ITEM_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "uint32": 4, "bfloat16": 2, "float32": 4}

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""Bits of a trellis code's symbols → the planes that hold them, each filling whole bytes."""

TRELLIS_BITS = tuple(PLANES)
BLOCK_SIZES = {2: (32, 64, 128), 4: (32, 64, 128), 8: (16, 32, 64, 128, 256)}
"""Bits a weight → inputs a block that onnxruntime's MatMulNBits multiplies with as they are. With few bits, scales of
blocks of 16 would take as much as another half bit a weight."""

BLOCK_BITS = tuple(BLOCK_SIZES)
ALLOWED_BITS = {"trellis": TRELLIS_BITS, "blocks": BLOCK_BITS, "corrected": (2, 4)}
"""Kind → bits a weight it may have; 0 for the others, which have their own."""


USUAL_BLOCK, NARROW_BLOCK = 32, 16
LOW_BLOCK = 32
"""Numbers of a 4-bit factor that share a scale in memory, and so the multiple of 4-bit ranks: the smallest block that
onnxruntime multiplies with 4-bit numbers quickly."""

ACTIVATION_BLOCKS = (NARROW_BLOCK, USUAL_BLOCK, 64)
"""Inputs of a product that share one int8 activation scale, where the weights themselves have one scale a row. Narrow
blocks are more accurate (SmolLM2 with every matrix in int8 is at KL 0.0067, 0.0036, 0.0020 nats to its checkpoint for
64, 32, 16), wide ones smaller in memory and faster.
"""

WHOLE_PASS = -1
"""In place of a number of inputs: all inputs of all tokens of a pass share one scale, that of int8 rows in a plain int8
product. Two to three times as fast over a prompt, with no block scales in memory, and accurate only where no token and
no channel has peaks of its own: in rotated models (`edge_svd.rotation`).
"""

BLOCK_STEPS = 255
"""A block's scale is a byte, in steps of this share of its row's."""

MOST_PIVOTED = 65_535
"""Rows or columns of a pivoted matrix are numbered in 16 bits."""


@dataclass(frozen=True)
class SiteFormat:
    """The format chosen for one matrix.

    `k4`, `k8` and `k16` count the 4-bit, int8 and 16-bit components of a low-rank one, `k8` the pivot rows or columns
    of a pivoted one and the components of a correction; `bits` a weight for a trellis or blocks; `rows` of a table:
    (bits, rows) of each group, most bits first; blocks of `block` inputs, with a zero point each or symmetric. In the
    other kinds, `block` inputs of the first product share an activation scale; 0 stands for the usual number. Of int8,
    it may be WHOLE_PASS.
    """

    kind: str
    k8: int = 0
    k16: int = 0
    k4: int = 0
    bits: int = 0
    rows: tuple[tuple[int, int], ...] = ()
    block: int = 0
    zero: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Unknown format {self.kind!r}; known formats are {', '.join(KINDS)}.")
        if self.bits not in ALLOWED_BITS.get(self.kind, (0,)):
            raise InputError(
                f"Format {self.kind!r} cannot have {self.bits} bits; a trellis has 1 to 6, blocks have 2, 4 or 8, and "
                "corrected ones 2 or 4."
            )
        blocked = self.kind in BLOCKED
        sizes = BLOCK_SIZES[self.bits] if blocked else (0,) if self.kind == "column-pivoted" else _SHARED
        sizes = (*sizes, WHOLE_PASS) if self.kind == "int8" else sizes
        if self.block not in sizes or (self.zero and not blocked):
            raise InputError(f"Format {self.kind!r} cannot have blocks of {self.block} with zero points {self.zero}.")
        if (self.kind == "table") != bool(self.rows) or not _descending(self.rows):
            raise InputError(f"Format {self.kind!r} cannot have the row groups {self.rows!r}.")
        self._check_ranks()

    def _check_ranks(self) -> None:
        if self.kind in (*PIVOTED, "corrected"):
            if self.k8 <= 0 or self.k8 % ALIGNMENT or self.k16 or self.k4:
                raise InputError(
                    f"A {self.kind} format needs a rank k8 that is a positive multiple of {ALIGNMENT} and no k4 or "
                    f"k16, got {self.k8}, {self.k4} and {self.k16}."
                )
        elif self.kind == "low-rank":
            ranks = ((self.k4, LOW_BLOCK), (self.k8, ALIGNMENT), (self.k16, ALIGNMENT))
            if any(rank < 0 or rank % step for rank, step in ranks) or not self.rank:
                raise InputError(
                    f"A low-rank format needs ranks k8 and k16 that are multiples of {ALIGNMENT}, k4 of {LOW_BLOCK}, "
                    f"and not all zero, got {self.k8}, {self.k16} and {self.k4}."
                )
        elif self.rank:
            raise InputError(f"Format {self.kind!r} takes no ranks, got {self.k8}, {self.k16} and {self.k4}.")

    @property
    def factored(self) -> bool:
        """Whether the matrix is kept as two factors."""
        return self.kind in FACTORED

    @property
    def stored(self) -> tuple[Any, ...]:
        """What decides the tensors in the file: everything but how many inputs share an activation scale."""
        block = self.block if self.kind in BLOCKED else 0
        return self.kind, self.k4, self.k8, self.k16, self.bits, self.rows, block, self.zero

    @property
    def family(self) -> str:
        """What `--candidates` calls it: both pivoted kinds are one, and so are both trellis-coded ones; blocks
        are one for each number of bits."""
        if self.kind == "blocks":
            return f"blocks-{self.bits}"
        return "pivoted" if self.kind in PIVOTED else "trellis" if self.kind in CODED else self.kind

    @property
    def rank(self) -> int:
        """Rank components kept; 0 for a dense format."""
        return self.k4 + self.k8 + self.k16

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether an m x n matrix can be kept like this."""
        if (self.block and shape[1] % self.block) or (self.k4 and shape[1] % LOW_BLOCK):
            return False
        if self.kind in PIVOTED:
            return self.k8 < min(shape) and max(shape) <= MOST_PIVOTED
        if self.kind == "table":
            return sum(count for _, count in self.rows) == shape[0]
        if self.kind == "trellis":
            return shape[1] <= MOST_PIVOTED
        return self.rank <= min(shape)

    def inputs_a_block(self, width: int) -> int:
        """How many inputs of the first product share an activation scale, of `width` padded inputs, or WHOLE_PASS."""
        return self.block or (USUAL_BLOCK if width % USUAL_BLOCK == 0 else NARROW_BLOCK)

    def to_json(self) -> dict[str, Any]:
        shared: dict[str, Any] = {"block": self.block} if self.block else {}
        if self.factored:
            low = {"k4": self.k4} if self.k4 else {}
            return {"kind": self.kind, "k8": self.k8, "k16": self.k16, **low, **shared}
        if self.kind == "trellis":
            return {"kind": self.kind, "bits": self.bits, **shared}
        if self.kind == "table":
            return {"kind": self.kind, "rows": [list(group) for group in self.rows], **shared}
        if self.kind in BLOCKED:
            rank = {"k8": self.k8} if self.k8 else {}
            return {"kind": self.kind, "bits": self.bits, "block": self.block, "zero": self.zero, **rank}
        return {"kind": self.kind, **shared}

    @classmethod
    def from_json(cls, value: Any) -> SiteFormat:
        """Strict inverse of `to_json`; raises InputError on anything else."""
        if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str) or set(value) - FIELDS:
            raise InputError(f"A site's format must be an object with {', '.join(sorted(FIELDS))}, got {value!r}.")
        numbers = {key: value.get(key, 0) for key in ("k8", "k16", "k4", "bits", "block")}
        zero = value.get("zero", False)
        if type(zero) is not bool:
            raise InputError(f"`zero` of a site's format must be true or false, got {value!r}.")
        if any(type(number) is not int for number in numbers.values()):
            raise InputError(f"Ranks and bits of a site's format must be integers, got {value!r}.")
        groups = value.get("rows", [])
        if not isinstance(groups, list) or any(
            not isinstance(group, list) or [type(entry) for entry in group] != [int, int] for group in groups
        ):
            raise InputError(f"Row groups of a site's format must be pairs of integers, got {value!r}.")
        return cls(value["kind"], **numbers, rows=tuple((bits, count) for bits, count in groups), zero=zero)


_SHARED = (0, *ACTIVATION_BLOCKS)

FIELDS = frozenset(("kind", "k8", "k16", "k4", "bits", "rows", "block", "zero"))


def _descending(rows: tuple[tuple[int, int], ...]) -> bool:
    """Groups of known bits, most bits first, none empty."""
    bits = [width for width, _ in rows]
    return bits == sorted(set(bits) & set(TRELLIS_BITS), reverse=True) and all(count > 0 for _, count in rows)


def padded(width: int) -> int:
    """`width` rounded up to the storage alignment."""
    return -(-width // ALIGNMENT) * ALIGNMENT


def tensors(shape: tuple[int, int], fmt: SiteFormat) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Suffix → (dtype, shape) of the tensors that hold an m x n matrix in this format.

    row-pivoted: y = [A x; C A x] in the order of `order`, A = s8 a8 the pivot rows, C = t8 c8 the other rows'
    coefficients. column-pivoted: y = B (x₁ + C x₂), where [x₁; x₂] is x in the order of `order`, B = s8 b8 the pivot
    columns, C = t8 c8 the other columns' coefficients. trellis: symbols in planes, `order` says at which place of the
    rounding each column stands. table: the same for each group g of rows; `place` says at which place of the groups one
    after the other each row stands; s8 scales the rows and c8 the columns, in their own order. blocks: integers q,
    the scale s8 · u8 / 255 and zero points z of each block, several to a byte from its low bits up; corrected: the
    same and B A, A = t8 a8. low-rank: the rows of A carry the scale of their component; 4-bit numbers lie two to a
    byte, 8 more than they are.

    Raises InputError where the matrix has no such rank.
    """
    if not fmt.fits(shape):
        raise InputError(f"A {shape[0]} x {shape[1]} matrix cannot be kept as {fmt.kind} of rank {fmt.rank}.")
    m, n = shape[0], padded(shape[1])
    if fmt.kind == "int8":
        return {"q8": ("int8", (m, n)), "s8": ("bfloat16", (m,))}
    if fmt.kind == "int16":
        return {"q16": ("int16", (m, n)), "s16": ("bfloat16", (m,))}
    if fmt.kind in BLOCKED:
        blocks = n // fmt.block
        zeros = {"z": ("uint8", (m, -(-blocks * fmt.bits // 8)))} if fmt.zero else {}
        thin: dict[str, tuple[str, tuple[int, ...]]] = {}
        if fmt.k8:
            thin = {"b8": ("int8", (m, fmt.k8)), "a8": ("int8", (fmt.k8, n)), "t8": ("bfloat16", (fmt.k8,))}
        numbers = {"q": ("uint8", (m, n * fmt.bits // 8)), "u8": ("uint8", (m, blocks)), "s8": ("bfloat16", (m,))}
        return {**numbers, **zeros, **thin}
    if fmt.kind == "trellis":
        return {**_planes((m, n), fmt.bits), "s8": ("bfloat16", (m,)), "order": ("uint16", (n,))}
    if fmt.kind == "table":
        groups = {
            f"g{bits}{suffix}": tensor
            for bits, count in fmt.rows
            for suffix, tensor in _planes((count, n), bits).items()
        }
        index = "uint16" if m <= MOST_PIVOTED else "uint32"
        scales = {"s8": ("bfloat16", (m,)), "c8": ("bfloat16", (n,))}
        return {**groups, **scales, "order": ("uint16", (n,)), "place": (index, (m,))}
    k = fmt.k8
    if fmt.kind == "row-pivoted":
        return {
            "a8": ("int8", (k, n)),
            "s8": ("bfloat16", (k,)),
            "c8": ("int8", (m - k, k)),
            "t8": ("bfloat16", (m - k,)),
            "order": ("uint16", (m,)),
        }
    if fmt.kind == "column-pivoted":
        return {
            "b8": ("int8", (m, k)),
            "s8": ("bfloat16", (m,)),
            "c8": ("int8", (k, n - k)),
            "t8": ("bfloat16", (k,)),
            "order": ("uint16", (n,)),
        }
    result: dict[str, tuple[str, tuple[int, ...]]] = {}
    if fmt.k4:
        result |= {"b4": ("uint8", (m, fmt.k4 // 2)), "a4": ("uint8", (fmt.k4, n // 2)), "s4": ("bfloat16", (fmt.k4,))}
    if fmt.k8:
        result |= {"b8": ("int8", (m, fmt.k8)), "a8": ("int8", (fmt.k8, n)), "s8": ("bfloat16", (fmt.k8,))}
    if fmt.k16:
        result |= {"b16": ("int16", (m, fmt.k16)), "a16": ("int16", (fmt.k16, n)), "s16": ("bfloat16", (fmt.k16,))}
    return result


def _planes(shape: tuple[int, int], bits: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"p{width}": ("uint8", (shape[0], shape[1] * width // 8)) for width in PLANES[bits]}


def weight_bytes(shape: tuple[int, int], fmt: SiteFormat) -> int:
    """Bytes of those tensors on disk, without alignment between them."""
    return sum(ITEM_BYTES[dtype] * math.prod(dims) for dtype, dims in tensors(shape, fmt).values())
