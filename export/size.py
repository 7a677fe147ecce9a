"""The size of a bundle to the byte, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from edge_svd.architectures import Architecture
from edge_svd.described import Described
from edge_svd.export import documents
from edge_svd.export.data import data_size
from edge_svd.export.graphs import graphs_of
from edge_svd.formats import SiteFormat
from edge_svd.runtime.schema import (
    MANIFEST_NAME,
    MEASUREMENTS_BYTES,
    MEASUREMENTS_NAME,
    MODEL_NAME,
    WEIGHTS_NAME,
)

_DIGEST = "0" * 64


def exact_sizes(
    architecture: Described,
    formats: Mapping[str, SiteFormat],
    companions: Mapping[str, bytes],
    source: Mapping[str, str],
    plan: Mapping[str, Any],
    *,
    biases: frozenset[str] = frozenset(),
    context: int | None = None,
) -> dict[str, int]:
    """File name → bytes of the bundle that `export_bundle` would write; `companions` are the files that travel along.

    The graphs are built as for the export (offsets follow from shapes); digests in the manifest have a fixed length.
    """
    length = documents.context_length(architecture, context)
    chosen = tuple(sorted(formats.items(), key=lambda item: item[0]))
    sizes = {
        **{name: len(documents.companion(name, data, length)) for name, data in companions.items()},
        **_graph_sizes(architecture, chosen, length, biases, documents.kv_cache(plan)),
    }
    if isinstance(architecture, Architecture):
        pad = documents.pad_token_id(companions.get(documents.GENERATION, b""), architecture)
        sizes[documents.GENAI] = len(documents.genai_config(architecture, length, pad))
    digests = {name: (size, _DIGEST) for name, size in sizes.items()}
    sizes[MANIFEST_NAME] = len(documents.manifest(architecture, length, source, plan, digests))
    sizes[MEASUREMENTS_NAME] = MEASUREMENTS_BYTES
    return sizes


@lru_cache(maxsize=64)  # a planner asks about the same formats again, with other numbers in the manifest
def _graph_sizes(
    architecture: Described,
    chosen: tuple[tuple[str, SiteFormat], ...],
    length: int,
    biases: frozenset[str],
    cache: str,
) -> dict[str, int]:
    """Bytes of every graph, and of the weights that all of them read."""
    graphs = graphs_of(architecture, dict(chosen), context=length, biases=biases, cache=cache)
    sizes = {name: len(graph.model) for name, graph in graphs.items()}
    return sizes | {WEIGHTS_NAME: data_size(graphs[MODEL_NAME].weights)}
