"""`svd-llm-v2`: activation-aware SVD through the eigenvectors of the input's second moment."""

from __future__ import annotations

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import required, two_sided
from edge_svd.decompose.whitening import Metric, whiten

DAMPING = 0.0  # as published; the eigenvalue cut is what handles a singular second moment


@DECOMPOSITIONS.register("svd-llm-v2")
def svd_llm_v2(w: Matrix, c_in: Metric | None, c_out: Metric | None, *, damping: float | None = None) -> Factorization:
    """SVD-LLM V2: least ‖(W - BA) X‖_F at every rank, also where X Xᵀ is singular.

    Wang et al. 2025 (SVD-LLM V2), section 3.2, Theorem 3.1: X Xᵀ = U S Uᵀ, the SVD of W U S^½, undone with S^-½ Uᵀ.
    The theorem, not Algorithm 2, which leaves out the square root and Vᵀ. c_out is not used.
    """
    required(c_in, "c_in", "svd-llm-v2")
    assert c_in is not None
    return two_sided(w, whiten(c_in, DAMPING if damping is None else damping, "c_in"), None)
