"""The decompositions by name, and what each of them takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.two_sided import TwoSided, between
from edge_svd.registry import Registry, parametrised


class Decomposition(Protocol):
    """w: [m, n], numpy or torch, any float type, and its statistics → factors with w = b @ a, best components first.

    rank: how many components are wanted, None for all; who gives more than asked for gives them behind the wanted ones.
    The work is done in float64 on a CUDA card where there is one (`compute_device`), and what it gives stays there.
    `needs` are the statistics that it reads beyond `c_in` and `c_out`, which calibration always takes. Raises Failure
    where an argument holds NaN or infinity (naming it), InputError where shapes do not fit or a statistic is missing.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization: ...


DECOMPOSITIONS: Registry[Callable[..., Decomposition]] = Registry("decomposition method")
"""Dataclasses whose fields are the parameters of the method."""


def decompose(name: str, **parameters: float) -> Decomposition:
    """The decomposition of that name, or `NAME:PARAMETER=VALUE,…`: `asvd:alpha=0.3`.

    Raises InputError that lists the known names or parameters, or says which value is out of range.
    """
    return parametrised(DECOMPOSITIONS, name, **parameters)


def decompose_together(
    name: str, matrices: Sequence[Matrix], sites: Sequence[Measured], rank: int | None = None
) -> list[Factorization]:
    """Many matrices by the method of that name; eigenvectors of those of one width come from one call."""
    method = decompose(name)
    if isinstance(method, TwoSided):
        return between(matrices, [method.sides(w, site) for w, site in zip(matrices, sites, strict=True)], rank)
    return [method(w, site, rank) for w, site in zip(matrices, sites, strict=True)]
