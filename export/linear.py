"""The one place that decides which operators compute a matrix in each format.

Everything is onnxruntime's MatMulNBits, with 8 bits but for blocks: weights stay integers in memory, activations are
quantised per block. Only int8 rows whose inputs share one scale a pass are its DynamicQuantizeMatMul.

    int8       one product.
    int16      one product over twice the width: the input beside itself, against the high and the low plane.
    low-rank   A then B. Rows of A: [a8; a16 high; a16 low]; columns of B: [b8 | b16 high | b16 low]. The two planes
               of A are added before B reads them twice. Without 16-bit components that is just two products.
               4-bit components are two products of their own, beside the others.
    blocks     one product of 2, 4 or 8 bits, as they lie in the file.
    corrected  that, and the two products of its int8 factors.
    trellis    one product, on the int8 rows that the graph makes of the code while it is loaded.
    Matrices of one kernel that read the same input (`edge_svd.fusing`) are one product, rows below rows.
    pivoted    by rows: A gives some of the outputs, C the others from them; both side by side, put into order.
               by columns: C adds the other inputs to the pivot ones, and B takes the sum.

Scales lie in the file once a row, as bfloat16; Cast and Mul spread them over the blocks inside the graph and
onnxruntime folds both at load. The scale of a component belongs to A, so B needs no scale in the file at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import Site
from edge_svd.export import planes
from edge_svd.export.coded import coded_matrix
from edge_svd.export.graph import BFLOAT16, FLOAT, INT8, INT32, MICROSOFT, UINT8, UINT16, Array, Builder, Reader
from edge_svd.formats import (
    BLOCK_STEPS,
    BLOCKED,
    CODED,
    LOW_BLOCK,
    NARROW_BLOCK,
    PIVOTED,
    WHOLE_PASS,
    SiteFormat,
    padded,
)
from edge_svd.fusing import joined

ACCURACY_LEVEL = 4
"""int8 activations; lower levels are 30 to 130 times slower with 8-bit weights."""


def linear(
    builder: Builder, x: ir.Value, site: Site, fmt: SiteFormat, matrix: str = "", bias: bool = False
) -> ir.Value:
    """x [batch, sequence, n] → x Wᵀ (+ bias) [batch, sequence, m]; `matrix` names the site that owns a tied matrix."""
    name, (m, n) = matrix or site.name, site.shape
    x = pad_activation(builder, x, n)
    add = builder.plain(f"{site.name}.bias", m) if bias else None
    if fmt.kind in PIVOTED:
        return _pivoted(builder, x, name, (m, n), fmt, add)
    if fmt.kind == "low-rank":
        return _low_rank(builder, x, name, (m, n), fmt, add)
    if fmt.kind in BLOCKED:
        y = _blocked(builder, x, [name], (m, n), fmt, add)
        if not fmt.k8:
            return y
        thin = SiteFormat("low-rank", fmt.k8)
        return builder.op("Add", y, _wide_factors(builder, x, name, (m, n), thin, None, scale="t8"))
    if fmt.block == WHOLE_PASS:
        return _whole_pass(builder, x, [name], (m, n), add)
    if fmt.kind == "int16":
        x = builder.shared("Concat", x, x, axis=-1)
    if fmt.kind == "table":
        x = builder.op("Mul", x, column_scale(builder, name, padded(n)))
    weight, block, pattern = dense_matrix(builder, name, (m, n), fmt)
    scales = builder.shared(
        "Mul", float_scale(builder, name, m, scale_suffix(fmt)), builder.constant([pattern], np.float32)
    )
    return _product(builder, x, weight, scales, (m, len(pattern) * block), block, add)


def fused_linear(
    builder: Builder, x: ir.Value, sites: Sequence[Site], formats: Mapping[str, SiteFormat], bias: bool
) -> ir.Value:
    """What `linear` gives for several matrices [m_i, n] of one kernel (`edge_svd.fusing`), side by side, from one
    product: [batch, sequence, Σ m_i]."""
    names, rows, n = [site.name for site in sites], [site.shape[0] for site in sites], sites[0].shape[1]
    m, name, fmt = sum(rows), joined(names), formats[names[0]]
    x = pad_activation(builder, x, n)
    add = _joint(builder, names, "bias", FLOAT, (m,)) if bias else None
    if fmt.kind == "blocks":
        return _blocked(builder, x, names, (m, n), fmt, add)
    if fmt.block == WHOLE_PASS:
        return _whole_pass(builder, x, names, (m, n), add)
    block = fmt.inputs_a_block(padded(n))
    count = padded(n) // block
    if fmt.kind == "trellis":
        parts = [coded_matrix(builder, own, (k, n), formats[own], block) for own, k in zip(names, rows, strict=True)]
        weight = builder.op("Concat", *parts, axis=0)
    else:

        def read_rows(read: Reader) -> Iterator[Array]:
            return chain.from_iterable(planes.rows8(read, f"{own}.q8") for own in names)

        weight = builder.weight(f"{name}.q8", UINT8, (m, count, block), read_rows)
    row = builder.op("Cast", _joint(builder, names, "s8", BFLOAT16, (m, 1)), to=int(FLOAT))
    scales = builder.op("Mul", row, builder.constant([[1.0] * count], np.float32))
    return _product(builder, x, weight, scales, (m, count * block), block, add)


def apart(builder: Builder, y: ir.Value, widths: Sequence[int]) -> list[ir.Value]:
    """What lies side by side in y [batch, sequence, Σ widths]."""
    return builder.node("Split", [y, builder.constant(widths, np.int64)], outputs=len(widths), axis=-1)


def _joint(builder: Builder, names: Sequence[str], suffix: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """A tensor that several matrices have under one suffix, rows below rows."""
    tensors = [f"{name}.{suffix}" for name in names]
    return builder.weight(f"{joined(names)}.{suffix}", dtype, shape, lambda read: (read(tensor) for tensor in tensors))


def _whole_pass(
    builder: Builder, x: ir.Value, names: Sequence[str], shape: tuple[int, int], bias: ir.Value | None
) -> ir.Value:
    """The product with int8 rows [m, n] in all, x on one scale: the kernel wants the numbers of an input together."""
    values = builder.weight(
        f"{joined(names)}.q8", INT8, (padded(shape[1]), shape[0]), lambda read: planes.inputs8(read, names)
    )
    stored = _joint(builder, names, "s8", BFLOAT16, (shape[0],))
    scales = builder.op("Cast", stored, to=int(FLOAT))
    inputs = [x, values, scales, None, bias]
    return builder.op("DynamicQuantizeMatMul", *inputs[: 5 if bias is not None else 3], domain=MICROSOFT)


def _blocked(
    builder: Builder, x: ir.Value, names: Sequence[str], shape: tuple[int, int], fmt: SiteFormat, bias: ir.Value | None
) -> ir.Value:
    """The product with matrices in blocks, rows below rows: [m, n] in all."""
    values, codes, zeros = stored_blocks(builder, names, shape, fmt)
    row = builder.shared("Cast", _joint(builder, names, "s8", BFLOAT16, (shape[0], 1)), to=int(FLOAT))
    row = builder.shared("Div", row, builder.constant(BLOCK_STEPS, np.float32))
    scales = builder.shared("Mul", builder.shared("Cast", codes, to=int(FLOAT)), row)
    return _product(builder, x, values, scales, shape, fmt.block, bias, fmt.bits, zeros)


def dense_matrix(
    builder: Builder, name: str, shape: tuple[int, int], fmt: SiteFormat
) -> tuple[ir.Value, int, list[float]]:
    """The stored bytes [m, blocks, block], the block size, and each block's factor on the row's scale."""
    m, n = shape[0], padded(shape[1])
    block = fmt.inputs_a_block(n)
    if fmt.kind in CODED:
        return coded_matrix(builder, name, shape, fmt, block), block, [1.0] * (n // block)
    suffix, reader, factors = {"int8": ("q8", planes.rows8, [1.0]), "int16": ("q16", planes.rows16, [256.0, 1.0])}[
        fmt.kind
    ]
    pattern = [factor for factor in factors for _ in range(n // block)]
    tensor = f"{name}.{suffix}"
    value = builder.weight(tensor, UINT8, (m, len(pattern), block), lambda read: reader(read, tensor))
    return value, block, pattern


def stored_blocks(
    builder: Builder, names: Sequence[str], shape: tuple[int, int], fmt: SiteFormat
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Matrices in blocks, [m, n] in all: integers uint8 [m, blocks, bytes a block], scale codes [m, blocks], zero
    points if any."""
    m, blocks = shape[0], shape[1] // fmt.block
    values = _joint(builder, names, "q", UINT8, (m, blocks, fmt.block * fmt.bits // 8))
    zeros = _joint(builder, names, "z", UINT8, (m, -(-blocks * fmt.bits // 8))) if fmt.zero else None
    return values, _joint(builder, names, "u8", UINT8, (m, blocks)), zeros


def stored_scale(builder: Builder, name: str, rows: int, suffix: str) -> ir.Value:
    """A scale for each row as it lies in the file, bfloat16 [rows, 1]."""
    return _joint(builder, [name], suffix, BFLOAT16, (rows, 1))


def column_scale(builder: Builder, name: str, width: int) -> ir.Value:
    """Column scales of a table, float32 [padded width]."""
    tensor = f"{name}.c8"
    stored = builder.weight(tensor, BFLOAT16, (width,), lambda read: iter([read(tensor)]))
    return builder.shared("Cast", stored, to=int(FLOAT))


def scale_suffix(fmt: SiteFormat) -> str:
    """Suffix of the row scales of a dense matrix."""
    return "s16" if fmt.kind == "int16" else "s8"


def float_scale(builder: Builder, name: str, rows: int, suffix: str) -> ir.Value:
    """The same as float32 [rows, 1]."""
    return builder.shared("Cast", stored_scale(builder, name, rows, suffix), to=int(FLOAT))


def pad_activation(builder: Builder, x: ir.Value, width: int) -> ir.Value:
    """Zeros up to the stored width, for models whose widths are no multiple of 16."""
    extra = padded(width) - width
    if not extra:
        return x
    return builder.shared("Pad", x, builder.constant([0, 0, 0, 0, 0, extra], np.int64))


def _low_rank(
    builder: Builder, x: ir.Value, name: str, shape: tuple[int, int], fmt: SiteFormat, bias: ir.Value | None
) -> ir.Value:
    if not fmt.k4:
        return _wide_factors(builder, x, name, shape, fmt, bias)
    low = _low_factors(builder, x, name, shape, fmt.k4, bias)
    if fmt.rank == fmt.k4:
        return low
    return builder.op("Add", _wide_factors(builder, x, name, shape, fmt, None), low)


def _low_factors(
    builder: Builder, x: ir.Value, name: str, shape: tuple[int, int], k: int, bias: ir.Value | None
) -> ir.Value:
    """The 4-bit components: numbers lie in the file as the kernel takes them."""
    m, n = shape[0], padded(shape[1])

    def factor(x: ir.Value, letter: str, dims: tuple[int, int], scales: ir.Value, bias: ir.Value | None) -> ir.Value:
        tensor = f"{name}.{letter}4"
        blocks = dims[1] // LOW_BLOCK
        values = builder.weight(tensor, UINT8, (dims[0], blocks, LOW_BLOCK // 2), lambda read: iter([read(tensor)]))
        return _product(builder, x, values, scales, dims, LOW_BLOCK, bias, bits=4)

    by_row = float_scale(builder, name, k, "s4")
    a_scales = builder.op("Mul", by_row, builder.constant([[1.0] * (n // LOW_BLOCK)], np.float32))
    z = factor(x, "a", (k, n), a_scales, None)
    return factor(z, "b", (m, k), _pattern(builder, m, [1.0] * (k // LOW_BLOCK)), bias)


def _pattern(builder: Builder, rows: int, factors: list[float]) -> ir.Value:
    """Scales [rows, blocks] of a B: the same in every row, as a component's scale belongs to A."""
    shape = builder.constant([rows, len(factors)], np.int64)
    return builder.shared("Expand", builder.constant([factors], np.float32), shape)


def _wide_factors(
    builder: Builder,
    x: ir.Value,
    name: str,
    shape: tuple[int, int],
    fmt: SiteFormat,
    bias: ir.Value | None,
    scale: str = "s8",
) -> ir.Value:
    """The int8 and 16-bit components; `scale` is the suffix of the scales of the int8 ones."""
    m, n = shape[0], padded(shape[1])
    k8, k16 = fmt.k8, fmt.k16
    rows = k8 + 2 * k16
    block = fmt.inputs_a_block(n)
    a_readers: list[Callable[[Reader], Iterator[Array]]] = []
    scales: list[ir.Value] = []
    if k8:
        a_readers.append(lambda read: planes.rows8(read, f"{name}.a8"))
        scales.append(float_scale(builder, name, k8, scale))
    if k16:
        a_readers.append(lambda read: planes.stacked16(read, f"{name}.a16"))
        low = float_scale(builder, name, k16, "s16")
        scales += [builder.op("Mul", low, builder.constant(256.0, np.float32)), low]

    def read_a(read: Reader) -> Iterator[Array]:
        for reader in a_readers:
            yield from reader(read)

    def read_b(read: Reader) -> Iterator[Array]:
        if k8 and k16:
            return planes.columns8_16(read, f"{name}.b8", f"{name}.b16")
        return planes.rows8(read, f"{name}.b8") if k8 else planes.rows16(read, f"{name}.b16")

    a = builder.weight(f"{name}.a", UINT8, (rows, n // block, block), read_a)
    row_scale = scales[0] if len(scales) == 1 else builder.op("Concat", *scales, axis=0)
    a_scales = builder.op("Mul", row_scale, builder.constant([[1.0] * (n // block)], np.float32))
    z = _product(builder, x, a, a_scales, (rows, n), block, None)
    if k16:
        parts = [k8, k16, k16] if k8 else [k16, k16]
        *narrow, high, low = builder.node("Split", [z, builder.constant(parts, np.int64)], outputs=len(parts), axis=-1)
        wide = builder.op("Add", high, low)
        z = builder.op("Concat", *narrow, wide, wide, axis=-1)

    # What A hands to B falls off steeply from component to component: always the smallest block.
    block = NARROW_BLOCK
    pattern = [1.0] * (k8 // block) + [256.0] * (k16 // block) + [1.0] * (k16 // block)
    b = builder.weight(f"{name}.b", UINT8, (m, len(pattern), block), read_b)
    return _product(builder, z, b, _pattern(builder, m, pattern), (m, rows), block, bias)


def _pivoted(
    builder: Builder, x: ir.Value, name: str, shape: tuple[int, int], fmt: SiteFormat, bias: ir.Value | None
) -> ir.Value:
    m, n, k = shape[0], padded(shape[1]), fmt.k8

    def rows(x: ir.Value, parts: str, dims: tuple[int, int], block: int, bias: ir.Value | None = None) -> ir.Value:
        """The product with an int8 matrix of one scale a row; `parts` are the letters of its numbers and its scale."""
        tensor, width = f"{name}.{parts[0]}8", dims[1] // block
        weight = builder.weight(tensor, UINT8, (dims[0], width, block), lambda read: planes.rows8(read, tensor))
        by_row = float_scale(builder, name, dims[0], f"{parts[1]}8")
        scales = builder.op("Mul", by_row, builder.constant([[1.0] * width], np.float32))
        return _product(builder, x, weight, scales, dims, block, bias)

    tensor = f"{name}.order"
    stored = builder.weight(tensor, UINT16, (m if fmt.kind == "row-pivoted" else n,), lambda read: iter([read(tensor)]))
    order = builder.op("Cast", stored, to=int(INT32))
    if fmt.kind == "row-pivoted":
        pivots = rows(x, "as", (k, n), fmt.inputs_a_block(n))
        rest = rows(pivots, "ct", (m - k, k), NARROW_BLOCK)
        y = builder.op("Gather", builder.op("Concat", pivots, rest, axis=-1), order, axis=2)
        return y if bias is None else builder.op("Add", y, bias)
    sorted_x = builder.op("Gather", x, order, axis=2)
    first, second = builder.node("Split", [sorted_x, builder.constant([k, n - k], np.int64)], outputs=2, axis=-1)
    hidden = builder.op("Add", first, rows(second, "ct", (k, n - k), NARROW_BLOCK))
    return rows(hidden, "bs", (m, k), NARROW_BLOCK, bias)


def _product(
    builder: Builder,
    x: ir.Value,
    weight: ir.Value,
    scales: ir.Value,
    shape: tuple[int, int],
    block: int,
    bias: ir.Value | None,
    bits: int = 8,
    zeros: ir.Value | None = None,
) -> ir.Value:
    inputs = [x, weight, scales, zeros, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    return builder.op(
        "MatMulNBits",
        *inputs,
        domain=MICROSOFT,
        N=shape[0],
        K=shape[1],
        bits=bits,
        block_size=block,
        accuracy_level=ACCURACY_LEVEL,
    )
