"""The graph of a decoder as our runtime has it computed, one text without padding at a time: token rows come from the
file, logits as many as are asked, and nothing is worked out from a mask.

Other runtimes run the graph as it lies on disk, with the logits of the last token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.onnx_writer import FLOAT, INT32, INT64, value
from edge_svd.runtime.schema import COLUMNS, EMBEDDED, KEYS, LAST_KEY, PADDING, PLACES
from edge_svd.runtime.token_rows import TokenRows, token_rows


@dataclass(frozen=True)
class DecodingGraph:
    """A graph that may take as inputs the values `EMBEDDED`, which `rows` makes of token ids, `COLUMNS`, and those of
    `spans` instead of the mask."""

    graph: bytes
    rows: TokenRows | None = None
    columns: bool = False
    spans: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether it is another graph than the file's."""
        return self.rows is not None or self.columns or bool(self.spans)


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
    spans: tuple[str, ...] = ()
    if LAST_KEY in parts and KEYS in parts:
        spans = tuple(name for name in (LAST_KEY, KEYS, PLACES) if name in parts.readers())
        known = {
            LAST_KEY: value(LAST_KEY, INT32, ("batch",)),
            KEYS: value(KEYS, INT32, (1,)),
            PLACES: value(PLACES, INT64, ("batch", "sequence")),
        }
        given |= {name: known[name] for name in spans}
    if not given:
        return DecodingGraph(graph)
    return DecodingGraph(parts.given(given, outputs=outputs, without=PADDING if spans else ""), rows, columns, spans)
