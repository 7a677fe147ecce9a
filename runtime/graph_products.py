"""The matrix products of a bundle's graph, read from its protobuf bytes."""

from __future__ import annotations

from dataclasses import dataclass

from edge_svd.runtime.onnx_external import walk
from edge_svd.runtime.onnx_parts import GRAPH, INITIALIZER, NODE, node_at, tensor_at, text_at

WHOLE = "DynamicQuantizeMatMul"
PACKED_GROUPS = {2: 4}
"""Blocks of a row that MatMulNBits packs together, where it is not one: 2-bit rows of 5 blocks take the room of 8."""


@dataclass(frozen=True)
class GraphProduct:
    """One MatMulNBits: rows N, columns K, bits a weight, inputs a block. Or, where `whole`, one DynamicQuantizeMatMul,
    whose block is the whole row."""

    rows: int
    columns: int
    bits: int
    block: int
    whole: bool = False

    @property
    def blocks(self) -> int:
        """Blocks a row, the last one padded."""
        return -(-self.columns // self.block)


def packed_blocks(blocks: int, bits: int) -> int:
    """Blocks that a row of so many takes in the kernel's memory."""
    group = PACKED_GROUPS.get(bits, 1)
    return -(-blocks // group) * group


def graph_products(graph: bytes) -> tuple[GraphProduct, ...]:
    """Every product of a checked ONNX file, in file order."""
    found = []
    for start, end in _inside(graph, 0, len(graph), GRAPH):
        tensors = {text_at(graph, *place, 8): place for place in _inside(graph, start, end, INITIALIZER)}
        for place in _inside(graph, start, end, NODE):
            node = node_at(graph, *place)
            a = {key: value for key, value in node.attributes.items() if isinstance(value, int)}
            if node.kind == "MatMulNBits":
                found.append(GraphProduct(a["N"], a["K"], a.get("bits", 4), a["block_size"]))
            elif node.kind == WHOLE and node.inputs[1] in tensors:
                columns, rows = tensor_at(graph, *tensors[node.inputs[1]]).shape
                found.append(GraphProduct(rows, columns, 8, columns, whole=True))
    return tuple(found)


def _inside(data: bytes, start: int, end: int, number: int) -> list[tuple[int, int]]:
    return [(value, stop) for field, wire, value, stop in walk(data, start, end) if field == number and wire == 2]
