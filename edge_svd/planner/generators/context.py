"""What a candidate generator may look at, and the registry of generators."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch

from edge_svd.allocate import Strategy
from edge_svd.architectures import Site
from edge_svd.calibrate.statistics import Statistics
from edge_svd.compute_device import compute_device
from edge_svd.decompose import Factorization, decompose
from edge_svd.decompose.pivots import damped
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.components import ComponentTable, component_table
from edge_svd.quantize.feedback import UnitFactor, unit_factor
from edge_svd.quantize.trellis import InputFactor
from edge_svd.registry import Registry


@dataclass(frozen=True)
class SiteContext:
    """One matrix with its statistics; everything is computed on first use, in float64.

    Metrics, factors and `matrix` lie on the device that computes (`compute_device`); `weight` and what only a processor
    works with, which is all error feedback, in its memory.

    Attributes:
        site: which matrix.
        source: W [m, n] in any floating type, anywhere; for tied embeddings the shared matrix [vocabulary, hidden].
        statistics: of the model that the matrix belongs to.
        method: the decomposition, by its registered name.
        strategy: the allocation strategy that scores components.
        roles: for an embedding, which of "lookup" and "head" its matrix serves; empty for other sites.
        lookup_scale: what the model multiplies a looked-up row with before it enters the residual stream's metric.
    """

    site: Site
    source: torch.Tensor
    statistics: Statistics
    method: str
    strategy: Strategy
    roles: tuple[str, ...] = ()
    lookup_scale: float = 1.0

    @cached_property
    def weight(self) -> torch.Tensor:
        return self.source.cpu().float()

    @cached_property
    def matrix(self) -> torch.Tensor:
        device = compute_device()
        return self.weight if device.type == "cpu" else self.source.to(device).float()

    @cached_property
    def w(self) -> torch.Tensor:
        return self.weight.double()

    @cached_property
    def c_in(self) -> torch.Tensor:
        return self.statistics.c_in(self.site, compute_device())

    @cached_property
    def c_out(self) -> torch.Tensor:
        return self.statistics.c_out(self.site, compute_device())

    @cached_property
    def moment(self) -> torch.Tensor:
        return self.statistics.moment(self.site, compute_device())

    @property
    def magnitude(self) -> torch.Tensor:
        return self.statistics.magnitude(self.site)

    @property
    def fisher(self) -> torch.Tensor:
        return self.statistics.fisher(self.site)

    @cached_property
    def damped_in(self) -> torch.Tensor:
        return damped(self.c_in.cpu())

    @cached_property
    def damped_out(self) -> torch.Tensor:
        return damped(self.c_out.cpu())

    @cached_property
    def inputs(self) -> InputFactor:
        return InputFactor.of(self.c_in.cpu())

    @cached_property
    def outputs(self) -> UnitFactor:
        return unit_factor(self.c_out.cpu())

    @cached_property
    def gradient(self) -> torch.Tensor:
        return self.statistics.gradient(self.site).to(compute_device())

    @cached_property
    def changes(self) -> torch.Tensor | None:
        """First-order changes of the loss by window and component; known only where a comparison measured them."""
        return None

    @cached_property
    def factorization(self) -> Factorization:
        return self.decomposed(self.matrix)

    def decomposed(self, matrix: torch.Tensor, rank: int | None = None) -> Factorization:
        """A matrix [m, n] in the place of this one, by the same method; its first `rank` components, or all."""
        return decompose(self.method)(matrix, self, rank)

    @cached_property
    def components(self) -> ComponentTable:
        return component_table(self)

    def at(self, rank: int) -> SiteContext:
        """This matrix with the factors and components that a truncation to `rank` keeps a prefix of."""
        found = self.factorization.at(rank)
        if found is self.factorization:
            return self
        view = copy(self)
        view.__dict__.pop("components", None)
        view.__dict__["factorization"] = found
        return view


GENERATORS: Registry[Callable[[SiteContext], list[Candidate]]] = Registry("candidate kind")
