"""Whether the installed onnxruntime has a kernel, and whether it computes what it should: tried, not looked up."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime

from edge_svd.runtime import onnx_writer as onnx

_ROWS, _BLOCKS = 32, 4
_TOLERANCE = 0.05
"""Of the result's norm: activations are rounded to int8 on the way."""


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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": x})[0]
    except Exception:  # onnxruntime has one class of error for each status, all of them its own
        return False
    weights = (numbers.astype(np.float32) - 2.0 ** (bits - 1)) * np.repeat(scales, block, axis=1)
    wanted = x @ weights.T
    return bool(np.linalg.norm(found - wanted) <= _TOLERANCE * np.linalg.norm(wanted))
