"""The graphs of a bundle, by file name; all of them read one data file."""

from __future__ import annotations

from collections.abc import Mapping

from edge_svd.described import Described
from edge_svd.encoders.architecture import Encoder
from edge_svd.export.decoder import Graph, decoder
from edge_svd.export.encoder import encoder
from edge_svd.formats import SiteFormat
from edge_svd.runtime.schema import MODEL_NAME, SCORING_NAME


def graphs_of(
    architecture: Described,
    formats: Mapping[str, SiteFormat],
    *,
    context: int,
    biases: frozenset[str] = frozenset(),
    cache: str = "float32",
) -> dict[str, Graph]:
    """File name → graph: of a decoder one for the last position and one for all, of an encoder the one that it has."""
    if isinstance(architecture, Encoder):
        return {MODEL_NAME: encoder(architecture, formats)}
    return {
        name: decoder(architecture, formats, context=context, every_position=every, biases=biases, cache=cache)
        for name, every in ((MODEL_NAME, False), (SCORING_NAME, True))
    }
