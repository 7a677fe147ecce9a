"""The process that measures one matrix kernel: `python -m edge_svd.runtime.kernel_worker JSON` prints one JSON line.

A chain of MatMulNBits of N x K and K x N, or of DynamicQuantizeMatMul (block WHOLE_PASS), stored as bundles store them
(numbers in the mapped file, a bfloat16 scale a row, spread over the blocks by operators that onnxruntime folds at
load), so memory and time are those of real graphs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime import onnx_writer as onnx
from edge_svd.runtime.graph_products import WHOLE
from edge_svd.runtime.memory import anonymous_bytes, file_bytes, peak_rss_bytes, release_free_memory

DATA = "data.bin"
_ACCURACY_LEVEL = 4
_PROMPTS = 3
WHOLE_PASS = -1
"""In place of a block: int8 rows whose inputs share one scale a pass, as in `edge_svd.formats`."""


def write_chain(folder: Path, rows: int, columns: int, bits: int, block: int, pairs: int) -> Path:
    """model.onnx of x [1, columns] → y through `pairs` products to `rows` and back; returns its path.

    The numbers are random, scaled so that activations keep their size.
    """
    rng = np.random.default_rng(0)
    nodes: list[bytes] = []
    tensors: list[bytes] = []
    offset, at = 0, "x"
    with open(folder / DATA, "wb") as handle:
        for index in range(2 * pairs):
            n, k = (rows, columns) if index % 2 == 0 else (columns, rows)
            after = "y" if index == 2 * pairs - 1 else f"x{index}"
            size = 2.0**-bits * (12.0 / k) ** 0.5
            halves = (np.full(n, size, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
            if block == WHOLE_PASS:
                numbers = rng.integers(-127, 128, (k, n), dtype=np.int8)
                handle.write(numbers.tobytes())
                tensors.append(onnx.external(f"q{index}", onnx.INT8, (k, n), DATA, offset, numbers.size))
                tensors.append(onnx.inline(f"h{index}", onnx.BFLOAT16, (n,), halves))
                nodes.append(onnx.node("Cast", [f"h{index}"], [f"s{index}"], to=onnx.FLOAT))
                nodes.append(onnx.node(WHOLE, [at, f"q{index}", f"s{index}"], [after], onnx.MICROSOFT))
                offset, at = offset + numbers.size, after
                continue
            blocks = -(-k // block)
            width = block * bits // 8
            numbers = rng.integers(0, 256, (n, blocks, width), dtype=np.uint8)
            handle.write(numbers.tobytes())
            tensors.append(onnx.external(f"q{index}", onnx.UINT8, (n, blocks, width), DATA, offset, numbers.size))
            offset += numbers.size
            tensors.append(onnx.inline(f"h{index}", onnx.BFLOAT16, (n, 1), halves))
            tensors.append(onnx.inline(f"o{index}", onnx.FLOAT, (1, blocks), np.ones(blocks, np.float32).tobytes()))
            nodes.append(onnx.node("Cast", [f"h{index}"], [f"f{index}"], to=onnx.FLOAT))
            nodes.append(onnx.node("Mul", [f"f{index}", f"o{index}"], [f"s{index}"]))
            attributes = {"N": n, "K": k, "bits": bits, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}
            nodes.append(
                onnx.node("MatMulNBits", [at, f"q{index}", f"s{index}"], [after], onnx.MICROSOFT, **attributes)
            )
            at = after
    path = folder / "model.onnx"
    ends = onnx.value("x", onnx.FLOAT, ("rows", columns)), onnx.value("y", onnx.FLOAT, ("rows", columns))
    path.write_bytes(onnx.model(nodes, tensors, [ends[0]], [ends[1]]))
    return path


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Bytes that the session holds, and seconds per run of the chain on `batch` rows.

    Returns {"anonymous_bytes", "file_bytes", "peak_bytes" (all above the process before the session), "seconds"
    (`undisturbed`), "products"}, and with a `prompt` of so many rows "prompt_seconds" of a run on those.
    """
    rows, columns, bits, block, pairs = (int(request[key]) for key in ("rows", "columns", "bits", "block", "pairs"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(request["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    with tempfile.TemporaryDirectory() as folder:
        path = write_chain(Path(folder), rows, columns, bits, block, pairs)
        release_free_memory()
        before = (anonymous_bytes() or 0, file_bytes() or 0)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(1).standard_normal((int(request.get("batch", 1)), columns), np.float32)
        session.run(None, {"x": x})
        after = (anonymous_bytes() or 0, file_bytes() or 0)
        peak = peak_rss_bytes() or 0
        times: list[float] = []
        extra: dict[str, float] = {}
        until = time.perf_counter() + float(request["seconds"])
        while len(times) < 5 or time.perf_counter() < until:
            started = time.perf_counter()
            session.run(None, {"x": x})
            times.append(time.perf_counter() - started)
        prompts = int(request.get("prompt", 0))
        if prompts:
            x = np.random.default_rng(1).standard_normal((prompts, columns), np.float32)
            session.run(None, {"x": x})  # its buffers
            whole: list[float] = []
            while len(whole) < _PROMPTS:
                started = time.perf_counter()
                session.run(None, {"x": x})
                whole.append(time.perf_counter() - started)
            extra["prompt_seconds"] = min(whole)
    return {
        "anonymous_bytes": after[0] - before[0],
        "file_bytes": after[1] - before[1],
        "peak_bytes": peak - sum(before),
        "seconds": undisturbed(times),
        "products": 2 * pairs,
        **extra,
    }


def undisturbed(times: list[float]) -> float:
    """The time that a fifth of the repetitions reach: other programs only ever add to it."""
    return sorted(times)[len(times) // 5]


def main() -> int:
    print(json.dumps(measure(json.loads(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
