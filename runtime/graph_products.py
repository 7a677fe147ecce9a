"""The matrix products of a bundle's graph, read from its protobuf bytes."""

from __future__ import annotations

from dataclasses import dataclass

from edge_svd.runtime.onnx_external import walk

_GRAPH, _NODE, _OP_TYPE, _ATTRIBUTE, _NAME, _INT = 7, 1, 4, 5, 1, 3


@dataclass(frozen=True)
class GraphProduct:
    """One MatMulNBits: rows N, columns K, bits a weight, inputs a block."""

    rows: int
    columns: int
    bits: int
    block: int

    @property
    def blocks(self) -> int:
        """Blocks a row, the last one padded."""
        return -(-self.columns // self.block)


def graph_products(graph: bytes) -> tuple[GraphProduct, ...]:
    """Every MatMulNBits of a checked ONNX file, in file order."""
    found = []
    for start, end in _inside(graph, 0, len(graph), _GRAPH):
        for node in _inside(graph, start, end, _NODE):
            names = [graph[a:b] for a, b in _inside(graph, *node, _OP_TYPE)]
            if names == [b"MatMulNBits"]:
                a = dict(_attribute(graph, *place) for place in _inside(graph, *node, _ATTRIBUTE))
                found.append(GraphProduct(a[b"N"], a[b"K"], a.get(b"bits", 4), a[b"block_size"]))
    return tuple(found)


def _inside(data: bytes, start: int, end: int, number: int) -> list[tuple[int, int]]:
    return [(value, stop) for field, wire, value, stop in walk(data, start, end) if field == number and wire == 2]


def _attribute(data: bytes, start: int, end: int) -> tuple[bytes, int]:
    name, number = b"", 0
    for field, wire, value, stop in walk(data, start, end):
        if field == _NAME and wire == 2:
            name = data[value:stop]
        elif field == _INT and wire == 0:
            number = value
    return name, number
