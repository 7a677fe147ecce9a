"""The size of a bundle to the byte, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from edge_svd.architectures import Architecture
from edge_svd.export import documents
from edge_svd.export.data import data_size
from edge_svd.export.decoder import decoder
from edge_svd.formats import SiteFormat
from edge_svd.runtime.schema import (
    MANIFEST_NAME,
    MEASUREMENTS_BYTES,
    MEASUREMENTS_NAME,
    MODEL_NAME,
    SCORING_NAME,
    WEIGHTS_NAME,
)

_DIGEST = "0" * 64


def exact_sizes(
    architecture: Architecture,
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
    last, scoring, weights = _graph_sizes(architecture, chosen, length, biases, documents.kv_cache(plan))
    pad = documents.pad_token_id(companions.get(documents.GENERATION, b""), architecture)
    sizes = {
        **{name: len(documents.companion(name, data, length)) for name, data in companions.items()},
        MODEL_NAME: last,
        SCORING_NAME: scoring,
        WEIGHTS_NAME: weights,
        documents.GENAI: len(documents.genai_config(architecture, length, pad)),
    }
    digests = {name: (size, _DIGEST) for name, size in sizes.items()}
    sizes[MANIFEST_NAME] = len(documents.manifest(architecture, length, source, plan, digests))
    sizes[MEASUREMENTS_NAME] = MEASUREMENTS_BYTES
    return sizes


@lru_cache(maxsize=64)  # a planner asks about the same formats again, with other numbers in the manifest
def _graph_sizes(
    architecture: Architecture,
    chosen: tuple[tuple[str, SiteFormat], ...],
    length: int,
    biases: frozenset[str],
    cache: str,
) -> tuple[int, int, int]:
    """Bytes of the graph of the last position, of that of every position, and of the weights that both read."""
    formats = dict(chosen)
    last, scoring = (
        decoder(architecture, formats, context=length, every_position=every, biases=biases, cache=cache)
        for every in (False, True)
    )
    return len(last.model), len(scoring.model), data_size(last.weights)
