"""What one 576 x 1536 product costs in onnxruntime as different operators: time, memory, accuracy.

Every operator runs in a fresh process on enough distinct matrices that none stays in a cache; the cost of what
surrounds the products (one multiplication and one gather each, measured without a product between them) is subtracted.

    python benchmarks/int8_operators.py [--matrices 80] [--threads 2] [--only NAME ...]

Prints a table and writes benchmarks/results/int8_operators.json with the machine, the versions and the date. Times are
the fastest of the repetitions beside the median: on a busy machine only the fastest means anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, save

N, K = 1536, 576
PREFILL = 512
Made = tuple[list[Any], dict[str, np.ndarray]]
"""Nodes that turn `x` into `y`, and their initializers; names are made distinct by the caller."""


def int8_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [N, K] in ±127 and a scale a row."""
    scale = np.abs(w).max(axis=1) / 127
    return np.rint(w / scale[:, None]), scale.astype(np.float32)


def int16_planes(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """High and low integers [N, K] and a scale a row: w = scale (256 high + low)."""
    scale = np.abs(w).max(axis=1) / 32512
    q = np.rint(w / scale[:, None]).astype(np.int32)
    high = (q + 128) >> 8
    return high, q - 256 * high, scale.astype(np.float32)


def nbits(x: str, y: str, q: np.ndarray, scales: np.ndarray, block: int, tag: str = "") -> Made:
    """8-bit MatMulNBits; rows padded with zeros to whole blocks."""
    n, k = q.shape
    blocks = -(-k // block)
    stored = np.full((n, blocks * block), 128, np.uint8)
    stored[:, :k] = q + 128
    node = helper.make_node(
        "MatMulNBits",
        [x, f"q{tag}", f"s{tag}"],
        [y],
        domain="com.microsoft",
        N=n,
        K=k,
        bits=8,
        block_size=block,
        accuracy_level=4,
    )
    return [node], {
        f"q{tag}": stored.reshape(n, blocks, block),
        f"s{tag}": np.broadcast_to(scales, (n, blocks)).astype(np.float32),
    }


def blocks_of(block: int) -> Callable[[np.ndarray], Made]:
    def make(w: np.ndarray) -> Made:
        q, s = int8_rows(w)
        return nbits("x", "y", q, s[:, None], block)

    return make


def two_products(w: np.ndarray) -> Made:
    high, low, s = int16_planes(w)
    first, a = nbits("x", "y1", high, 256 * s[:, None], 32, "1")
    second, b = nbits("x", "y2", low, s[:, None], 32, "2")
    return [*first, *second, helper.make_node("Add", ["y1", "y2"], ["y"])], a | b


def planes_side_by_side(w: np.ndarray) -> Made:
    high, low, s = int16_planes(w)
    factors = np.repeat([[256.0, 1.0]], K // 32, axis=1)
    nodes, tensors = nbits("xx", "y", np.concatenate((high, low), axis=1), s[:, None] * factors, 32)
    return [helper.make_node("Concat", ["x", "x"], ["xx"], axis=-1), *nodes], tensors


def dynamic_quantize_matmul(w: np.ndarray) -> Made:
    q, s = int8_rows(w)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "q", "s"], ["y"], domain="com.microsoft")
    return [node], {"q": q.T.astype(np.int8), "s": s}


def per_row_in_graph(w: np.ndarray) -> Made:
    q, s = int8_rows(w)
    steps = [
        ("Abs", ["x"], "a", {}),
        ("ReduceMax", ["a", "axis"], "m", {"keepdims": 1}),
        ("Div", ["m", "c127"], "d", {}),
        ("Div", ["x", "d"], "r", {}),
        ("Round", ["r"], "i", {}),
        ("Add", ["i", "c128"], "u", {}),
        ("Cast", ["u"], "u8", {"to": TensorProto.UINT8}),
        ("MatMulInteger", ["u8", "q", "zero"], "acc", {}),
        ("Cast", ["acc"], "f", {"to": TensorProto.FLOAT}),
        ("Mul", ["f", "d"], "g", {}),
        ("Mul", ["g", "s"], "y", {}),
    ]
    tensors = {
        "q": q.T.astype(np.int8),
        "s": s,
        "axis": np.array([-1]),
        "c127": np.float32(127),
        "c128": np.float32(128),
        "zero": np.uint8(128),
    }
    return [helper.make_node(op, inputs, [out], **attrs) for op, inputs, out, attrs in steps], {
        name: np.asarray(value) for name, value in tensors.items()
    }


def half_cast(w: np.ndarray) -> Made:
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    return nodes, {"w": w.T.astype(np.float16)}


def single(w: np.ndarray) -> Made:
    return [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ascontiguousarray(w.T)}


def nothing(w: np.ndarray) -> Made:
    return [helper.make_node("Identity", ["x"], ["y"])], {}


OPERATORS: dict[str, tuple[Callable[[np.ndarray], Made], float]] = {
    "surroundings": (nothing, 0.0),
    "fp32 MatMul": (single, 4.0),
    "fp16 cast to fp32": (half_cast, 2.0),
    "MatMulNBits block 16": (blocks_of(16), 1.0),
    "MatMulNBits block 32": (blocks_of(32), 1.0),
    "MatMulNBits block 64": (blocks_of(64), 1.0),
    "MatMulNBits block 128": (blocks_of(128), 1.0),
    "int16: planes side by side, block 32": (planes_side_by_side, 2.0),
    "int16: two products, block 32": (two_products, 2.0),
    "DynamicQuantizeMatMul": (dynamic_quantize_matmul, 1.0),
    "rows in graph, MatMulInteger": (per_row_in_graph, 1.0),
}
"""Name → (how it is made, bytes a weight on disk)."""


def weight(index: int) -> np.ndarray:
    """The index-th matrix, [N, K] float32."""
    return np.random.default_rng(index).standard_normal((N, K), np.float32) * np.float32(0.05)


def build(path: Path, make: Callable[[np.ndarray], Made], matrices: int) -> None:
    """Products side by side on scaled copies of one input; one column of each goes on, so little else is measured."""
    nodes, offset, tensors, columns = [], 0, [], []
    with open(path.with_suffix(".data"), "wb") as data:
        for index in range(matrices):
            factor = helper.make_tensor(
                f"factor.{index}", TensorProto.FLOAT, [], [1.0 if index == 0 else 1 + index / 1000]
            )
            tensors.append(factor)
            nodes.append(helper.make_node("Mul", ["input", factor.name], [f"x.{index}"]))
            made, initializers = make(weight(index))
            for node in made:
                for names in (node.input, node.output):
                    names[:] = [f"{name}.{index}" for name in names]
                nodes.append(node)
            for name, array in initializers.items():
                tensor = TensorProto(name=f"{name}.{index}", dims=array.shape)
                tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
                if array.size < 64:
                    tensor.raw_data = array.tobytes()
                else:
                    offset = -(-offset // 64) * 64
                    data.seek(offset)
                    data.write(np.ascontiguousarray(array).tobytes())
                    tensor.data_location = TensorProto.EXTERNAL
                    for key, value in (
                        ("location", path.with_suffix(".data").name),
                        ("offset", offset),
                        ("length", array.nbytes),
                    ):
                        tensor.external_data.add(key=key, value=str(value))
                    offset += array.nbytes
                tensors.append(tensor)
            nodes.append(helper.make_node("Gather", [f"y.{index}", "first"], [f"column.{index}"], axis=1))
            columns.append(f"column.{index}")
    tensors.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    nodes.append(helper.make_node("Concat", columns, ["columns"], axis=1))
    nodes.append(helper.make_node("Identity", ["y.0"], ["first_product"]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", K])],
        [
            helper.make_tensor_value_info("columns", TensorProto.FLOAT, ["rows", matrices]),
            helper.make_tensor_value_info("first_product", TensorProto.FLOAT, None),
        ],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def memory() -> dict[str, float]:
    """Resident anonymous and file-backed megabytes of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {line[0][:-1]: int(line[1]) * 1024 / 1e6 for line in lines if line[0] in ("RssAnon:", "RssFile:")}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"]}


def measure(path: Path, matrices: int, threads: int) -> dict[str, float]:
    """In a fresh process: times in microseconds a product, memory in MB for all, relative error of the first one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    before = memory()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(7).standard_normal((PREFILL, K), np.float32)
    result: dict[str, float] = {}
    session.run(["columns"], {"input": rows[:1]})
    after = memory()
    result |= {f"{kind}_mb": after[kind] - before[kind] for kind in before}
    for name, count, repeats in (("decode", 1, 200), ("prefill", PREFILL, 5)):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(["columns"], {"input": rows[:count]})
            times.append((time.perf_counter() - start) * 1e6 / matrices)
        result |= {f"{name}_us": min(times), f"{name}_us_median": float(np.median(times))}
    found, expected = session.run(["first_product"], {"input": rows})[0], rows @ weight(0).T
    result["relative_error"] = (
        float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) if found.shape == expected.shape else 0.0
    )
    return result


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return {"processor": model, "cores": os.cpu_count(), "flags": known, "load_average": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.matrices, arguments.threads)))
        return
    rows: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(["surroundings", *arguments.only]):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            build(path, OPERATORS[name][0], arguments.matrices)
            command = [sys.executable, __file__, "--measure", str(path)]
            command += ["--matrices", str(arguments.matrices), "--threads", str(arguments.threads)]
            rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    base = rows.pop("surroundings")
    weights = N * K * arguments.matrices / 1e6
    print(
        f"| {N} x {K} | decode µs | prefill {PREFILL} µs | anonymous B/weight | file B/weight | disk B/weight | error |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        for key in row:
            if key != "relative_error":
                row[key] -= base[key]
        row["disk_bytes_per_weight"] = OPERATORS[name][1]
        memories = f"{row['anonymous_mb'] / weights:.2f} | {row['file_mb'] / weights:.2f}"
        print(
            f"| {name} | {row['decode_us']:.0f} | {row['prefill_us']:.0f} | {memories} | {OPERATORS[name][1]:.0f} "
            f"| {row['relative_error']:.2%} |"
        )
    result = {
        "shape": [N, K],
        "matrices": arguments.matrices,
        "threads": arguments.threads,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"onnxruntime": ort.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    target = Path(__file__).parent / "results" / "int8_operators.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
