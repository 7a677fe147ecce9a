"""Scales of packed products, computed in numpy instead of being folded by onnxruntime.

onnxruntime folds them at load and keeps them as long as the session lives, though on most processors its kernels pack
them along with the weights and never look at them again: four bytes a block, a tenth of 4-bit weights. Handed over,
their memory is ours to give back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.onnx_parts import Node, given_tensor
from edge_svd.runtime.operators import OPERATORS

Array = np.ndarray[Any, Any]
Makers = dict[str, Callable[[], Array]]

PRODUCT, SCALES = "MatMulNBits", 2
"""The operator, and which of its inputs they are."""


def given_scales(graph: bytes, weights: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[bytes, Makers]:
    """(the graph with initializers in place of the nodes that compute scales, what computes each).

    `graph` has passed `check_external_data`, `weights` is the data file. Scales that anything but products reads, or
    that are computed in a way not known here, stay as they are.
    """
    try:
        parts = Parts(graph)
    except ValueError:
        return graph, {}
    made: Makers = {}
    tensors: dict[str, bytes] = {}
    for name, readers in parts.readers().items():
        if name not in parts or any(node.kind != PRODUCT or place != SCALES for node, place in readers):
            continue
        nodes = parts.needed([name], ())
        if any(node.domain or node.kind not in OPERATORS or len(node.outputs) != 1 for node in nodes):
            continue
        make = partial(_made, name, nodes, parts, weights)
        try:
            found = make()
        except (KeyError, ValueError, IndexError, TypeError):
            continue
        made[name], tensors[name] = make, given_tensor(name, found.shape, found.dtype)
    return (parts.given({}, tensors=tensors), made) if made else (graph, {})


def _made(name: str, nodes: list[Node], parts: Parts, weights: np.ndarray[Any, np.dtype[np.uint8]]) -> Array:
    known: dict[str, Array] = {}
    for node in nodes:
        for source in node.inputs:
            if source not in known:
                tensor = parts.tensor(source)
                if tensor is None:
                    raise KeyError(source)  # an input of the graph
                known[source] = tensor.numbers(tensor.array(weights))
        known[node.outputs[0]] = OPERATORS[node.kind]([known[source] for source in node.inputs], node.attributes)
    return np.ascontiguousarray(known[name])
