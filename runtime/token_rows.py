"""The first hidden state of tokens, from rows of the token table that are read from the data file as tokens need them.

In the graph, Gather reads a mapping of the file, and Linux maps sixteen pages and more around every row: after a few
hundred tokens the whole table is resident, beside what the output head packed of the same bytes. So our runtime cuts
the part of the graph that turns input_ids into the first hidden state off, computes it in numpy, operator by operator,
and reads no more of the file than the rows themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.runtime.file_rows import CodedTable, FileRows
from edge_svd.runtime.onnx_external import walk
from edge_svd.runtime.onnx_parts import (
    GRAPH,
    INITIALIZER,
    INPUT,
    NODE,
    OUTPUT,
    VALUE_INFO,
    Node,
    field_bytes,
    node_at,
    tagged,
    tensor_at,
    text_at,
)
from edge_svd.runtime.onnx_writer import FLOAT, value
from edge_svd.runtime.schema import EMBEDDED
from edge_svd.runtime.unpack import DOMAIN

Array = np.ndarray[Any, Any]
Value = Array | FileRows | CodedTable
Operator = Callable[[list[Array], Mapping[str, int | str]], Array]

_CASTS: dict[int | str, type] = {1: np.float32, 6: np.int32, 7: np.int64}


NAMES = {INITIALIZER: 8, VALUE_INFO: 1}
"""What is said of values in a graph → the field of their name."""

KEPT = 1 << 20
"""Bytes of a tensor that is kept whole: scales, which would each cost a read of a few bytes."""


class TokenRows:
    """input_ids → what the graph's value `EMBEDDED` would be, to the last bit; `graph` is what is left without it."""

    def __init__(self, graph: bytes, data: Path) -> None:
        """`graph` has passed `check_external_data`, `data` is the data file, kept open.

        ValueError or KeyError for a graph without that value, or where it is computed in a way not known here.
        """
        outer = list(walk(graph, 0, len(graph)))
        spans = [(start, stop) for field, wire, start, stop in outer if field == GRAPH and wire == 2]
        if len(spans) != 1:
            raise ValueError("not one graph")
        inner = list(walk(graph, *spans[0]))
        places = {field: [item[2:] for item in inner if item[0] == field] for field in (NODE, INITIALIZER, OUTPUT)}
        nodes = {start: node_at(graph, start, stop) for start, stop in places[NODE]}
        makers = {name: node for node in nodes.values() for name in node.outputs if name}
        tensors = {text_at(graph, *place, 8): place for place in places[INITIALIZER]}
        steps = needed(makers, [EMBEDDED], ["input_ids"])
        if not steps:
            raise ValueError("no value of that name")
        self._file = open(data, "rb")  # noqa: SIM115: rows are read as long as the session lives
        self._known: dict[str, Value] = {}
        self._steps: list[Node] = []
        for node in steps:
            for name in node.inputs:
                if name in tensors and name not in self._known:
                    tensor = tensor_at(graph, *tensors[name])
                    if tensor.raw is not None:
                        self._known[name] = tensor.numbers(tensor.raw).reshape(tensor.shape)
                        continue
                    rows = FileRows(self._file.fileno(), tensor)
                    self._known[name] = rows.whole() if tensor.length <= KEPT else rows
            if node.domain == DOMAIN:
                self._known[node.outputs[0]] = CodedTable(node.kind, [self._stored(name) for name in node.inputs])
            elif node.domain or node.kind not in OPERATORS or len(node.outputs) != 1:
                raise ValueError(f"{node.kind} is not known here")
            elif all(name in self._known for name in node.inputs):
                self._known[node.outputs[0]] = self._result(node, self._known)
            else:
                self._steps.append(node)
        self.width = self(np.zeros(1, np.int64)).shape[-1]

        kept = needed(makers, [text_at(graph, *place, 1) for place in places[OUTPUT]], [EMBEDDED])
        read = {name for node in kept for name in node.inputs}
        ours = {id(node) for node in kept}
        parts = [
            field_bytes(field, wire, graph, start, stop)
            for field, wire, start, stop in inner
            if not (field == NODE and id(nodes[start]) not in ours)
            and not (field in NAMES and text_at(graph, start, stop, NAMES[field]) not in read)
        ]
        parts.append(tagged(INPUT, value(EMBEDDED, FLOAT, ("batch", "sequence", self.width))))
        others = [field_bytes(*item[:2], graph, *item[2:]) for item in outer if item[0] != GRAPH]
        self.graph = b"".join(others) + tagged(GRAPH, b"".join(parts))

    def __call__(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[n] → float32 [1, n, width]; IndexError for an id outside the table."""
        known = self._known | {"input_ids": ids[None]}
        for node in self._steps:
            known[node.outputs[0]] = self._result(node, known)
        return np.ascontiguousarray(known[EMBEDDED], dtype=np.float32)

    def _stored(self, name: str) -> FileRows | Array:
        found = self._known[name]
        if isinstance(found, CodedTable):
            raise ValueError("a code of codes")
        return found

    @staticmethod
    def _result(node: Node, known: Mapping[str, Value]) -> Array:
        values = [known[name] for name in node.inputs]
        first = values[0]
        if node.kind == "Gather" and not isinstance(first, np.ndarray):
            ids = values[1]
            assert isinstance(ids, np.ndarray)
            return first.take(ids.ravel()).reshape(*ids.shape, *first.shape[1:])
        arrays = [item.whole() if isinstance(item, FileRows) else item for item in values]
        if any(isinstance(item, CodedTable) for item in arrays):
            raise ValueError("a coded table that is more than looked up")
        return OPERATORS[node.kind](arrays, node.attributes)  # type: ignore[arg-type]


def token_rows(graph: bytes, data: Path) -> TokenRows | None:
    """None where the system cannot read at an offset, or the graph computes its first hidden state in another way."""
    if not hasattr(os, "pread"):
        return None
    try:
        return TokenRows(graph, data)
    except (KeyError, ValueError, IndexError, EOFError):
        return None


def needed(makers: Mapping[str, Node], names: Collection[str], given: Collection[str]) -> list[Node]:
    """The nodes that `names` need, in an order in which they can run, without those that make what is `given`."""
    found: dict[int, Node] = {}
    work = [(name, False) for name in names]
    while work:
        name, ready = work.pop()
        node = makers.get(name)
        if node is None or name in given or id(node) in found:
            continue
        if ready:
            found[id(node)] = node
        else:
            work.append((name, True))
            work += [(source, False) for source in node.inputs]
    return list(found.values())


def _reshape(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    x, shape = inputs
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _slice(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    x, starts, ends, axes = inputs
    where = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        where[axis] = slice(int(start), int(end))
    return x[tuple(where)]


def _gather(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    if attributes.get("axis", 0) != 0:
        raise ValueError("not rows")
    return np.take(inputs[0], inputs[1], axis=0)


def _shift(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    if attributes["direction"] != "RIGHT":
        raise ValueError("not to the right")
    return np.right_shift(*inputs)


def _sum(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    total: Array = inputs[0].sum(axis=tuple(int(axis) for axis in inputs[1]), keepdims=bool(attributes["keepdims"]))
    return total


OPERATORS: dict[str, Operator] = {
    "Gather": _gather,
    "Cast": lambda inputs, attributes: inputs[0].astype(_CASTS[attributes["to"]]),
    "Sub": lambda inputs, attributes: inputs[0] - inputs[1],
    "Mul": lambda inputs, attributes: inputs[0] * inputs[1],
    "Reshape": _reshape,
    "Unsqueeze": lambda inputs, attributes: np.expand_dims(inputs[0], tuple(int(axis) for axis in inputs[1])),
    "BitShift": _shift,
    "BitwiseAnd": lambda inputs, attributes: inputs[0] & inputs[1],
    "Slice": _slice,
    "ReduceSum": _sum,
}
"""What embeddings are made of (`export.embedding`)."""
