"""Whether the installed onnxruntime has a kernel, and whether it computes what it should: tried, not looked up."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime import onnx_writer as onnx

_ROWS, _BLOCKS = 32, 4
_TOLERANCE = 0.05
"""Of the result's norm: activations are rounded to int8 on the way."""


@cache
def whole_pass_works() -> bool:
    """One small DynamicQuantizeMatMul of the largest numbers against numpy: kernels that add pairs of products in 16
    bits, as x86-64 processors without VNNI do, give other ones."""
    columns = _BLOCKS * _ROWS
    weights = np.full((columns, _ROWS), 127, np.int8)
    weights[:, 1::2] = -127
    x = np.ones((2, columns), np.float32)
    graph = onnx.model(
        [onnx.node("DynamicQuantizeMatMul", ["x", "q", "s"], ["y"], onnx.MICROSOFT)],
        [
            onnx.inline("q", onnx.INT8, weights.shape, weights.tobytes()),
            onnx.inline("s", onnx.FLOAT, (_ROWS,), np.ones(_ROWS, np.float32).tobytes()),
        ],
        [onnx.value("x", onnx.FLOAT, x.shape)],
        [onnx.value("y", onnx.FLOAT, (2, _ROWS))],
    )
    return _gives(graph, x, x @ weights.astype(np.float32))


@cache
def kernel_works(bits: int, block: int) -> bool:
    """One small MatMulNBits against numpy; a version that refuses it, or returns other numbers, lacks the kernel."""
    rng = np.random.default_rng(0)
    columns, per_byte = _BLOCKS * block, 8 // bits if bits in (1, 2, 4, 8) else 1
    numbers = rng.integers(0, 2 ** min(bits, 8), (_ROWS, columns), dtype=np.uint8)
    packed = np.zeros((_ROWS, -(-columns // per_byte)), np.uint8)
    for place in range(per_byte):
        packed |= numbers[:, place::per_byte] << (place * bits if per_byte > 1 else 0)
    scales = rng.uniform(0.5, 1.5, (_ROWS, _BLOCKS)).astype(np.float32)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    shape = (_ROWS, _BLOCKS, packed.shape[1] // _BLOCKS)
    attributes = {"N": _ROWS, "K": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    graph = onnx.model(
        [onnx.node("MatMulNBits", ["x", "q", "s"], ["y"], onnx.MICROSOFT, **attributes)],
        [
            onnx.inline("q", onnx.UINT8, shape, packed.tobytes()),
            onnx.inline("s", onnx.FLOAT, scales.shape, scales.tobytes()),
        ],
        [onnx.value("x", onnx.FLOAT, (1, columns))],
        [onnx.value("y", onnx.FLOAT, (1, _ROWS))],
    )
    weights = (numbers.astype(np.float32) - 2.0 ** (bits - 1)) * np.repeat(scales, block, axis=1)
    return _gives(graph, x, x @ weights.T)


def _gives(graph: bytes, x: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": x})[0]
    except Exception:  # onnxruntime has one class of error for each status, all of them its own
        return False
    return bool(np.linalg.norm(found - wanted) <= _TOLERANCE * np.linalg.norm(wanted))
