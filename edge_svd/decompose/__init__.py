"""Published decompositions of one weight matrix, by name: `decompose("io-svd")(w, Metrics(c_in, c_out))`."""

from __future__ import annotations

from edge_svd.decompose import (  # noqa: F401  (each registers itself)
    asvd,
    asvd_iii,
    fwsvd,
    io_svd,
    nested,
    svd,
    svd_llm,
    svd_llm_v2,
    zs_svd,
)
from edge_svd.decompose.factorization import Factorization
from edge_svd.decompose.metrics import Measured, Metrics
from edge_svd.decompose.registry import DECOMPOSITIONS, decompose, decompose_together
from edge_svd.decompose.whitening import Whitening, whiten

__all__ = [
    "DECOMPOSITIONS",
    "Factorization",
    "Measured",
    "Metrics",
    "Whitening",
    "decompose",
    "decompose_together",
    "whiten",
]
