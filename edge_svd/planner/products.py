"""Which matrix products of onnxruntime a format becomes: what resident memory and decoding time are counted from.

A kind of format is one entry of PRODUCTS, which says the same as `edge_svd.export.linear`; a test compares the two on
real graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_svd.architectures import Site
from edge_svd.described import Described
from edge_svd.formats import LOW_BLOCK, NARROW_BLOCK, WHOLE_PASS, SiteFormat, padded


@dataclass(frozen=True)
class Product:
    """One MatMulNBits of `rows` outputs from `columns` inputs; `bits` a weight, one scale a `block` of inputs.

    Or, where `whole`, one DynamicQuantizeMatMul of int8 rows; its block is the whole row.

    Attributes:
        pattern: not empty where the scales are a constant that equal products of a graph share; names that constant.
        zero_points: whether every block has a zero point of its own.
    """

    rows: int
    columns: int
    bits: int
    block: int
    pattern: str = ""
    zero_points: bool = False
    whole: bool = False

    @property
    def shared(self) -> int:
        """Inputs that share an activation scale, or WHOLE_PASS: with `bits`, what tells kernels apart."""
        return WHOLE_PASS if self.whole else self.block

    @property
    def blocks(self) -> int:
        """Blocks a row, the last one padded."""
        return -(-self.columns // self.block)

    @property
    def weights(self) -> int:
        """Numbers multiplied, padding included."""
        return self.rows * self.blocks * self.block


@dataclass(frozen=True)
class Calls:
    """What a matrix becomes.

    Attributes:
        products: in the order they run.
        widths: of what passes between them, beyond the matrix's own input and output.
    """

    products: tuple[Product, ...]
    widths: tuple[int, ...] = ()


def _int8(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    n = padded(shape[1])
    if fmt.block == WHOLE_PASS:
        return Calls((Product(shape[0], n, 8, n, whole=True),))
    return Calls((Product(shape[0], n, 8, fmt.inputs_a_block(n)),))


def _int16(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    n = padded(shape[1])
    return Calls((Product(shape[0], 2 * n, 8, fmt.inputs_a_block(n)),), (2 * n,))


def _low_rank(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    found, widths = [], []
    m, n, inner = shape[0], padded(shape[1]), fmt.k8 + 2 * fmt.k16
    if inner:
        b = Product(m, inner, 8, NARROW_BLOCK, pattern=f"{fmt.k8}+{fmt.k16}")
        found += [Product(inner, n, 8, fmt.inputs_a_block(n)), b]
        widths += [inner, *((fmt.k8, fmt.k16) if fmt.k8 and fmt.k16 else ())]
    if fmt.k4:
        found += [Product(fmt.k4, n, 4, LOW_BLOCK), Product(m, fmt.k4, 4, LOW_BLOCK, pattern="4")]
        widths += [fmt.k4, *((m,) if inner else ())]
    return Calls(tuple(found), tuple(widths))


def _row_pivoted(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    m, n, k = shape[0], padded(shape[1]), fmt.k8
    return Calls((Product(k, n, 8, fmt.inputs_a_block(n)), Product(m - k, k, 8, NARROW_BLOCK)), (k, m - k))


def _column_pivoted(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    m, n, k = shape[0], padded(shape[1]), fmt.k8
    return Calls((Product(k, n - k, 8, NARROW_BLOCK), Product(m, k, 8, NARROW_BLOCK)), (k, n - k))


def _blocks(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    return Calls((Product(shape[0], shape[1], fmt.bits, fmt.block, zero_points=fmt.zero),))


def _corrected(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    thin = _low_rank(shape, SiteFormat("low-rank", fmt.k8))
    return Calls((*_blocks(shape, fmt).products, *thin.products), (*thin.widths, shape[0]))


PRODUCTS: dict[str, Callable[[tuple[int, int], SiteFormat], Calls]] = {
    "int8": _int8,
    "int16": _int16,
    "low-rank": _low_rank,
    "row-pivoted": _row_pivoted,
    "column-pivoted": _column_pivoted,
    "trellis": _int8,  # the graph unpacks it into int8 rows before the session packs them
    "table": _int8,
    "blocks": _blocks,
    "corrected": _corrected,
}
"""Kind → its calls for a matrix [m, n] in a format."""


def calls(shape: tuple[int, int], fmt: SiteFormat) -> Calls:
    """What an m x n matrix in this format becomes; KeyError for a kind without an entry."""
    return PRODUCTS[fmt.kind](shape, fmt)


def products(shape: tuple[int, int], fmt: SiteFormat) -> tuple[Product, ...]:
    """The products of an m x n matrix in this format, in the order they run."""
    return calls(shape, fmt).products


def multiplied(site: Site, architecture: Described) -> bool:
    """Whether decoding multiplies with a matrix of its own: an embedding that no head shares is only looked up in."""
    return not site.tied_to and (site.type != "embedding" or architecture.tied_embeddings)
