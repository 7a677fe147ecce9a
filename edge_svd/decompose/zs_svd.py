"""`zs-svd`: the factors of Zero-Sum SVD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.svd_llm import whitened
from edge_svd.decompose.two_sided import Sides, TwoSided


@DECOMPOSITIONS.register("zs-svd")
@dataclass(frozen=True)
class ZsSvd(TwoSided):
    """Zero-Sum SVD: the factors of SVD-LLM with a damped second moment; its ranks are `--allocation zero-sum`.

    arXiv 2602.02848: the Cholesky factor of the mean covariance + 1e-4 I. The paper's 1e-4 are units of the
    activations squared; here `damping` is a share of the mean diagonal, which means the same at every scale.
    """

    damping: float = 1e-4
    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def sides(self, w: Matrix, site: Measured) -> Sides:
        return whitened(site.moment, self.damping, "zs-svd")
