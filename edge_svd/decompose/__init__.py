"""Published decompositions of one weight matrix, by name: `decompose("io-svd")(w, c_in, c_out)`."""

from __future__ import annotations

from edge_svd.decompose import io_svd, svd, svd_llm, svd_llm_v2  # noqa: F401  (each registers itself)
from edge_svd.decompose.factorization import Factorization
from edge_svd.decompose.registry import DECOMPOSITIONS, decompose
from edge_svd.decompose.whitening import Whitening, whiten

__all__ = ["DECOMPOSITIONS", "Factorization", "Whitening", "decompose", "whiten"]
