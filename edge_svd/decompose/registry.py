"""The decompositions by name, and what each of them takes and gives."""

from __future__ import annotations

from typing import Protocol

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.whitening import Metric
from edge_svd.registry import Registry


class Decomposition(Protocol):
    """w: [m, n]; c_in = E[x xᵀ]: [n, n]; c_out = E[g gᵀ]: [m, m] → factors with w = b @ a, best components first.

    numpy or torch, any float type; the work is done in float64 on the CPU. A metric may be given as a `Whitening`, so
    that siblings reading one input pay for it once. A metric that a method does not use may be None. `damping` adds
    damping · mean(diag C) · I to the metrics used; None takes the method's default. Raises Failure where an argument
    holds NaN or infinity (naming the argument), InputError where shapes do not fit.
    """

    def __call__(
        self, w: Matrix, c_in: Metric | None, c_out: Metric | None, *, damping: float | None = None
    ) -> Factorization: ...


DECOMPOSITIONS: Registry[Decomposition] = Registry("decomposition method")


def decompose(name: str) -> Decomposition:
    """The decomposition of that name. Raises InputError that lists the known ones."""
    return DECOMPOSITIONS[name]
