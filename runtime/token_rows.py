"""The first hidden state of tokens, from rows of the token table that are read from the data file as tokens need them.

In the graph, Gather reads a mapping of the file, and Linux maps sixteen pages and more around every row: after a few
hundred tokens the whole table is resident, beside what the output head packed of the same bytes. So our runtime cuts
the part of the graph that turns input_ids into the first hidden state off (`decoding_graph`), computes it in numpy,
operator by operator, and reads no more of the file than the rows themselves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.runtime.file_rows import CodedTable, FileRows
from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.onnx_parts import Node
from edge_svd.runtime.operators import OPERATORS, Array
from edge_svd.runtime.schema import EMBEDDED
from edge_svd.runtime.unpack import DOMAIN

Value = Array | FileRows | CodedTable
Ids = np.ndarray[Any, np.dtype[np.int64]]
Embedded = np.ndarray[Any, np.dtype[np.float32]]

LATEST = 256
"""Single tokens whose rows are kept: half of a text's tokens stood among the 256 before, and reading a row of the file
and making numbers of it takes a twentieth of a step."""

KEPT = 1 << 20
"""Bytes of a tensor that is kept whole: scales, which would each cost a read of a few bytes."""


class TokenRows:
    """input_ids → what the graph's value `EMBEDDED` would be, to the last bit."""

    def __init__(self, graph: Parts, data: Path) -> None:
        """`data` is the data file, kept open.

        ValueError or KeyError for a graph without that value, or where it is computed in a way not known here.
        """
        steps = graph.needed([EMBEDDED], ["input_ids"])
        if not steps:
            raise ValueError("no value of that name")
        self._file = open(data, "rb")  # noqa: SIM115 - rows are read as long as the session lives
        self._known: dict[str, Value] = {}
        self._steps: list[Node] = []
        for node in steps:
            for name in node.inputs:
                tensor = None if name in self._known else graph.tensor(name)
                if tensor is not None and tensor.raw is not None:
                    self._known[name] = tensor.numbers(tensor.raw).reshape(tensor.shape)
                elif tensor is not None:
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
        self._latest: dict[int, Embedded] = {}
        self.width = self._computed(np.zeros(1, np.int64)).shape[-1]

    def __call__(self, ids: Ids) -> Embedded:
        """[n] → float32 [1, n, width]; IndexError for an id outside the table."""
        if len(ids) != 1:
            return self._computed(ids)
        token = int(ids[0])
        found = self._latest.pop(token, None)
        if found is None:
            found = self._computed(ids)
            if len(self._latest) == LATEST:
                del self._latest[next(iter(self._latest))]
        self._latest[token] = found
        return found

    def _computed(self, ids: Ids) -> Embedded:
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


def token_rows(graph: Parts, data: Path) -> TokenRows | None:
    """None where the system cannot read at an offset, or the graph computes its first hidden state in another way."""
    if not hasattr(os, "pread"):
        return None
    try:
        return TokenRows(graph, data)
    except (KeyError, ValueError, IndexError, EOFError):
        return None
