"""The graph of a decoder as our runtime has it computed: token rows come from the file, logits as many as are asked.

Other runtimes run the graph as it lies on disk, with the logits of the last token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.onnx_writer import FLOAT, INT64, value
from edge_svd.runtime.schema import COLUMNS, EMBEDDED
from edge_svd.runtime.token_rows import TokenRows, token_rows


@dataclass(frozen=True)
class DecodingGraph:
    """A graph that may take the values `EMBEDDED`, which `rows` makes of token ids, and `COLUMNS` as inputs."""

    graph: bytes
    rows: TokenRows | None = None
    columns: bool = False

    @property
    def changed(self) -> bool:
        """Whether it is another graph than the file's."""
        return self.rows is not None or self.columns


def decoding_graph(graph: bytes, data: Path, vocab_size: int) -> DecodingGraph:
    """From a graph that has passed `check_external_data`, and the data file; the graph itself where it is not ours."""
    try:
        parts = Parts(graph)
    except ValueError:
        return DecodingGraph(graph)
    given, outputs = {}, {}
    rows, columns = token_rows(parts, data), COLUMNS in parts
    if rows is not None:
        given[EMBEDDED] = value(EMBEDDED, FLOAT, ("batch", "sequence", rows.width))
    if columns:
        given[COLUMNS] = value(COLUMNS, INT64, ("batch", "columns", 1))
        outputs["logits"] = value("logits", FLOAT, ("batch", "columns", vocab_size))
    return DecodingGraph(parts.given(given, outputs=outputs) if given else graph, rows, columns)
