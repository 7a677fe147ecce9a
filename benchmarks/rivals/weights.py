"""How many bytes of weights a decoding step reads: what memory bandwidth is to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.onnx_session import prepared
from edge_svd.runtime.schema import MODEL_NAME

LOOK_UPS = ("Gather", "GatherBlockQuantized")
"""Operators that read a few rows of a table, of its scales and zero points."""


def bytes_read(path: Path, file_bytes: int) -> tuple[int, str]:
    """(bytes, which) that one token's decoding reads: of an ONNX file, all initializers but tables that are looked up.

    Of a bundle of ours the initializers count as the session holds them, after trellis codes are unpacked. Of other
    files all bytes count; none of those holds the embedding twice when it is tied.
    """
    if (path / "edge_svd.json").is_file():
        options = onnxruntime.SessionOptions()
        bundle = open_bundle(path)
        graph, handed = prepared(path, MODEL_NAME, bundle.read(MODEL_NAME), options)
        content = bundle.read(MODEL_NAME) if isinstance(graph, str) else graph
        found = initializers_read(onnx.load_from_string(content))
        del handed
        return found, "weights in memory"
    if (path / "model.onnx").is_file():
        return initializers_read(onnx.load(path / "model.onnx", load_external_data=False)), "weights but looked-up rows"
    return file_bytes, "file"


def initializers_read(model: Any) -> int:
    """Bytes of the initializers that some node reads as a whole."""
    graph = model.graph
    whole = {name for node in graph.node if node.op_type not in LOOK_UPS for name in node.input}
    return sum(size_of(tensor) for tensor in graph.initializer if tensor.name in whole)


def size_of(tensor: Any) -> int:
    """Bytes of an initializer, by its shape and type; two 4-bit numbers are a byte."""
    count = 1
    for size in tensor.dims:
        count *= size
    kind = tensor.data_type
    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
