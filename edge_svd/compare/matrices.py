"""Every inner matrix of a model decomposed by one method, and priced as one allocation sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from edge_svd.allocate import Field, Strategy, allocation
from edge_svd.allocate.first_order import changes_of
from edge_svd.architectures import Site
from edge_svd.calibrate.collect import inner_sites
from edge_svd.calibrate.statistics import Statistics
from edge_svd.compare.storage import PIVOTED, PLAIN, break_even, parameters
from edge_svd.compute_device import compute_device
from edge_svd.decompose import Factorization
from edge_svd.decompose.pivots import pivot_factors
from edge_svd.errors import InputError
from edge_svd.factored import Factors, factored
from edge_svd.models import OpenedModel
from edge_svd.parallel import side_by_side
from edge_svd.planner.batches import of_each
from edge_svd.planner.by_rule import chosen
from edge_svd.planner.components import truncation_losses
from edge_svd.planner.generators import SiteContext
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.planner.loss import quadratic
from edge_svd.planner.views import context_of

GRID = 6
"""Ranks at which a method whose truncations are no prefixes is priced; between them in logarithms."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Priced:
    """One matrix: components [r] in the order in which they are kept, predicted KL and the strategy's price of keeping
    k of them [r + 1], and the signed first-order change of dropping each [r] where the strategy looks at gradients."""

    order: torch.Tensor
    loss: NDArray[np.float64]
    score: NDArray[np.float64]
    signed: NDArray[np.float64] | None


@dataclass(frozen=True)
class Choice:
    """What an allocation keeps: per matrix the components, None where it stays whole; parameters of all of them."""

    kept: dict[str, torch.Tensor | None]
    parameters: int
    budget: int

    @property
    def ranks(self) -> dict[str, int | None]:
        """Rank of every matrix, None where it stays whole."""
        return {name: None if kept is None else len(kept) for name, kept in self.kept.items()}


class Decomposed:
    """The inner matrices of a model, each decomposed once by `method`."""

    def __init__(
        self, opened: OpenedModel, statistics: Statistics, method: str, progress: Progress = lambda done, total: None
    ) -> None:
        self.opened, self.statistics, self.method = opened, statistics, method
        self.sites = inner_sites(opened.sites)
        self.factorizations: dict[str, Factorization] = {}
        for site, found in zip(self.sites, of_each(self.sites, self._context, _decomposed), strict=True):
            self.factorizations[site.name] = found
            progress(len(self.factorizations), len(self.sites))

    def _context(self, site: Site, strategy: str = "uniform") -> SiteContext:
        module = self.opened.model.get_submodule(site.name)
        return context_of(site, module, self.opened.architecture, self.statistics, self.method, strategy)

    def priced(self, name: str, changes: Mapping[str, torch.Tensor] | None = None) -> list[Priced]:
        """Every matrix as the allocation of that name prices it; changes: what `component_changes` found."""
        strategy = allocation(name)

        def of(site: Site) -> Priced:
            context = self._context(site, name)
            found = self.factorizations[site.name].to(compute_device())
            context.__dict__["factorization"] = found
            context.__dict__["changes"] = None if changes is None else changes[site.name]
            with torch.no_grad():
                return _priced(context, found, strategy)

        return list(side_by_side(of, self.sites))

    def choose(
        self,
        name: str,
        ratio: float,
        priced: list[Priced],
        measured: Callable[[int, float], float] | None = None,
        meter: HeldOutKl | None = None,
        storage: str = PLAIN,
    ) -> Choice:
        """What that allocation keeps of ⌊ratio · parameters⌋; a matrix at or above its break-even rank stays whole.

        InputError where nothing fits, or the allocation needs what is not known.
        """
        field = field_of(self.sites, priced, measured, storage)
        if meter is not None:
            field = replace(field, truncated=partial(self._truncated, meter, field, priced))
        budget = int(ratio * sum(field.full))
        choice = chosen(field, name, budget)
        if choice is None:
            raise InputError(f"The allocation {name} cannot keep as little as {ratio:g} of the parameters.")
        return Choice(self._kept(field, priced, choice), field.spent(choice), budget)

    def _kept(self, field: Field, priced: list[Priced], choice: Sequence[int]) -> dict[str, torch.Tensor | None]:
        """Components of every matrix, None where it stays whole."""
        rows = zip(self.sites, priced, field.cost, choice, strict=True)
        return {site.name: None if j == len(cost) - 1 else row.order[:j] for site, row, cost, j in rows}

    def _truncated(
        self, meter: HeldOutKl, field: Field, priced: list[Priced], choice: Sequence[int], kind: str
    ) -> float:
        """KL with the matrices of one type cut as the choice has them."""
        kept = self._kept(field, priced, choice)
        own = {site.name: kept[site.name] for site in self.sites if site.type == kind}
        with factored(self.opened.model, self.factors(Choice(own, 0, 0))):
            return meter.measure()

    def stored(self, factors: Mapping[str, Factors], storage: str) -> dict[str, Factors]:
        """Factors fp32 as they are stored: with k rows of B those of the identity where they are pivoted."""
        if storage != PIVOTED:
            return dict(factors)
        sites = [site for site in self.sites if site.name in factors]

        def of(site: Site) -> Factors:
            b, a = (part.double() for part in factors[site.name])
            b, a = pivot_factors(b, a, self.statistics.c_in(site))
            return b.float(), a.float()

        return {site.name: made for site, made in zip(sites, side_by_side(of, sites), strict=True)}

    def factors(self, choice: Choice) -> dict[str, Factors]:
        """The factors that the chosen components make, fp32; matrices that stay whole are left out."""

        def of(name: str) -> Factors:
            kept = choice.kept[name]
            assert kept is not None
            found = self.factorizations[name].at(len(kept))
            return found.b[:, kept].float(), found.a[kept].float()

        names = [name for name, kept in choice.kept.items() if kept is not None]
        return dict(zip(names, side_by_side(of, names), strict=True))


def _decomposed(context: SiteContext) -> Factorization:
    with torch.no_grad():
        return context.factorization.to("cpu")


def field_of(
    sites: list[Site],
    priced: list[Priced],
    measured: Callable[[int, float], float] | None = None,
    storage: str = PLAIN,
) -> Field:
    """Options of every matrix: k components for every k below break-even, and the whole matrix, in parameters."""
    cost, loss, score, steps = [], [], [], []
    for site, row in zip(sites, priced, strict=True):
        (m, n), even = site.shape, break_even(site.shape, storage)
        cost.append(np.array([*(parameters(site.shape, rank, storage) for rank in range(even)), m * n], np.int64))
        loss.append(np.append(row.loss[:even], 0.0))
        score.append(np.append(row.score[:even], 0.0))
        if row.signed is not None:
            steps.append(np.append(row.signed[: even - 1], row.signed[even - 1 :].sum()))
    return Field(
        types=[site.type for site in sites],
        full=[site.shape[0] * site.shape[1] for site in sites],
        cost=cost,
        loss=loss,
        score=score,
        signed=steps.__getitem__ if steps else None,
        measured=measured,
    )


def _priced(context: SiteContext, found: Factorization, strategy: Strategy) -> Priced:
    if found.of_rank is not None:
        # Order and prices of a prefix mean nothing here: every rank has components of its own.
        between = _between_ranks(context, found)
        return Priced(torch.arange(len(found.energy)), between, between, _signed(context, found, strategy))
    order = strategy.order(found, context)
    loss = truncation_losses(context, order)
    score = strategy.tail(found, order, loss, context)
    ordered = replace(found, b=found.b[:, order], a=found.a[order])
    return Priced(order.cpu(), loss.cpu().numpy(), score.cpu().numpy(), _signed(context, ordered, strategy))


def _signed(context: SiteContext, found: Factorization, strategy: Strategy) -> NDArray[np.float64] | None:
    """-⟨∂L/∂W, b_r a_r⟩ for every component."""
    if "gradient" not in strategy.needs:
        return None
    return -changes_of(found, context.gradient).cpu().numpy()


def _between_ranks(context: SiteContext, found: Factorization) -> NDArray[np.float64]:
    """Predicted KL [r + 1] of every rank, measured at a few of them."""
    r = len(found.energy)
    ranks = sorted({round(r * i / GRID) for i in range(GRID)})
    known = [quadratic(context.matrix - found.truncated(rank).float(), context.c_in, context.c_out) for rank in ranks]
    floor = max(min(known), 1e-12) * 1e-3
    return np.exp(np.interp(np.arange(r + 1), [*ranks, r], np.log([max(loss, floor) for loss in [*known, 0.0]])))
