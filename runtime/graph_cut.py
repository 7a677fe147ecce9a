"""A graph that is given some of its values: what computed them leaves it, and what only that read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge_svd.runtime.onnx_external import walk
from edge_svd.runtime.onnx_parts import (
    GRAPH,
    INITIALIZER,
    INPUT,
    NODE,
    OUTPUT,
    VALUE_INFO,
    Node,
    Tensor,
    field_bytes,
    node_at,
    tagged,
    tensor_at,
    text_at,
)

NAMES = {INITIALIZER: 8, VALUE_INFO: 1, OUTPUT: 1}
"""What is said of values in a graph → the field of their name."""


LARGE = 4_000_000
"""Bytes of a tensor whose node comes first."""


class Parts:
    """The nodes and tensors of one graph, by the values they make."""

    def __init__(self, graph: bytes) -> None:
        """`graph` has passed `check_external_data`. ValueError unless it is one graph."""
        self._data = graph
        self._outer = list(walk(graph, 0, len(graph)))
        spans = [(start, stop) for field, wire, start, stop in self._outer if field == GRAPH and wire == 2]
        if len(spans) != 1:
            raise ValueError("not one graph")
        self._inner = list(walk(graph, *spans[0]))
        self._nodes = {start: node_at(graph, start, stop) for field, _, start, stop in self._inner if field == NODE}
        self._makers = {name: node for node in self._nodes.values() for name in node.outputs if name}
        self._tensors = {
            text_at(graph, start, stop, NAMES[field]): (start, stop)
            for field, _, start, stop in self._inner
            if field == INITIALIZER
        }

    def __contains__(self, name: str) -> bool:
        """Whether a node makes that value."""
        return name in self._makers

    def tensor(self, name: str) -> Tensor | None:
        """The initializer of that name."""
        return tensor_at(self._data, *self._tensors[name]) if name in self._tensors else None

    def needed(self, names: Collection[str], given: Collection[str]) -> list[Node]:
        """The nodes that `names` need, in an order in which they can run, without those that make what is `given`."""
        found: dict[int, Node] = {}
        work = [(name, False) for name in names]
        while work:
            name, ready = work.pop()
            node = self._makers.get(name)
            if node is None or name in given or id(node) in found:
                continue
            if ready:
                found[id(node)] = node
            else:
                work.append((name, True))
                work += [(source, False) for source in node.inputs]
        return list(found.values())

    def readers(self) -> dict[str, list[tuple[Node, int]]]:
        """Value → the nodes that read it, and which of their inputs it is."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self._nodes.values():
            for place, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node, place))
        return found

    def given(
        self,
        values: Mapping[str, bytes],
        *,
        tensors: Mapping[str, bytes] | None = None,
        outputs: Mapping[str, bytes] | None = None,
        without: str = "",
    ) -> bytes:
        """The graph with `values`, name → ValueInfoProto, as inputs and `tensors`, name → TensorProto, as initializers;
        `outputs` says anew of what shape some are. `without` is a value that nodes go without, as an input they need
        not have.

        The nodes that read the largest tensors come first: onnxruntime, which sorts by what needs what itself, packs
        them in this order, and while it packs the vocabulary, its rows are in memory twice. Early, little else is.
        """
        data, tensors, outputs = self._data, tensors or {}, outputs or {}
        results = [text_at(data, start, stop, 1) for field, _, start, stop in self._inner if field == OUTPUT]
        kept = self.needed(results, {*values, *tensors, without})
        ours = {id(node) for node in kept}
        read = {name for node in kept for name in node.inputs if name != without}
        parts: list[bytes] = []
        first: list[tuple[int, bytes]] = []
        for field, wire, start, stop in self._inner:
            name = text_at(data, start, stop, NAMES[field]) if field in NAMES else ""
            if field == OUTPUT:
                parts.append(tagged(OUTPUT, outputs.get(name, data[start:stop])))
            elif field == NODE and id(self._nodes[start]) in ours:
                size = max(
                    (tensor.length for key in self._nodes[start].inputs if (tensor := self.tensor(key))), default=0
                )
                node = field_bytes(field, wire, data, start, stop)
                if without and without in self._nodes[start].inputs:
                    node = tagged(NODE, _without(data, start, stop, without))
                if size >= LARGE:
                    first.append((size, node))
                else:
                    parts.append(node)
            elif field != NODE and (field not in NAMES or name in read):
                parts.append(field_bytes(field, wire, data, start, stop))
        parts = [node for _, node in sorted(first, key=lambda item: -item[0])] + parts
        parts += [tagged(INPUT, value) for value in values.values()]
        parts += [tagged(INITIALIZER, tensor) for tensor in tensors.values()]
        others = [field_bytes(*item[:2], data, *item[2:]) for item in self._outer if item[0] != GRAPH]
        return b"".join(others) + tagged(GRAPH, b"".join(parts))


def _without(data: bytes, start: int, stop: int, name: str) -> bytes:
    """A NodeProto whose input `name` is left out."""
    return b"".join(
        tagged(1, b"")
        if field == 1 and data[value:end] == name.encode()
        else field_bytes(field, wire, data, value, end)
        for field, wire, value, end in walk(data, start, stop)
    )
