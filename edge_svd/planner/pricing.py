"""Prices of all candidates of a model, and the measurements that correct them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.statistics import Statistics
from edge_svd.described import Described
from edge_svd.formats import SiteFormat, weight_bytes
from edge_svd.parallel import side_by_side
from edge_svd.planner.activation_probe import measured_activations, squared_ranges
from edge_svd.planner.activations import input_losses
from edge_svd.planner.batches import of_each
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import (
    SHARE,
    THIN_SHARE,
    Perturbed,
    Probes,
    alone,
    ratio,
    together,
)
from edge_svd.planner.generators import GENERATORS, SiteContext
from edge_svd.planner.generators.trellis import probe, table_metric
from edge_svd.planner.held_out import FEW_WINDOWS, WINDOWS, Measure, replaced
from edge_svd.planner.loss import quadratic
from edge_svd.planner.narrow import Narrow
from edge_svd.planner.views import embedding_roles
from edge_svd.quantize.components import round_components
from edge_svd.quantize.corrected import product
from edge_svd.quantize.table import row_noise, sampled_table_error
from edge_svd.runtime.memory import release_free_memory
from edge_svd.streaming.scratch import kept

FAMILIES = ("int8", "int16", "low-rank", "pivoted", "blocks-2", "blocks-4", "blocks-8", "trellis")
"""Generators whose candidates are priced."""

CODED_FAMILIES = ("blocks", "trellis")
"""Beginnings of the names of those whose rounding looks at the metrics."""

RESIDENT_FAMILIES = ("corrected",)
"""Those priced only when they are asked for, or where memory or time is limited too: on disk alone, one more bit of a
trellis code is always better."""

PROBED_BITS, PROBED_TABLE_BITS = 2, 3
"""Trellis codes are perturbed with the error of this many bits."""

ROWS = 8192
"""Rows of a table looked at together."""

Activations = Mapping[str, Mapping[int, float]]
"""Site → inputs that share a scale → predicted loss of rounding its inputs, nats per token."""

ROUNDINGS = {"factored": WINDOWS, "thin": FEW_WINDOWS, "coded": WINDOWS, "one-bit": FEW_WINDOWS}
"""Kinds of rounding, and the windows that their losses are measured on."""

STEEP = ("q", "k", "qkv")
"""Types of matrices whose errors go through the softmax of the attention: those of one bit lose two to five times what
those of two bits foretell, those of a few components twice what those of many do."""

FEW_MATTER = (*STEEP, "o")
"""Types whose few components are measured apart from many."""

Corrections = Mapping[str, Mapping[str, float]]
"""Kind of rounding → site → factor."""


@dataclass(frozen=True)
class Priced:
    """One matrix: its candidates, by kind of rounding the error that its type is perturbed with, and what rounding its
    inputs loses."""

    candidates: tuple[Candidate, ...]
    perturbed: Mapping[str, Perturbed]
    activations: Mapping[int, float]


def price(context: SiteContext, families: Sequence[str] = FAMILIES) -> Priced:
    """Everything about one matrix that needs its statistics, for candidates of these families."""
    with torch.no_grad():
        found = tuple(c for kind in families for c in GENERATORS[kind](context))
        probes: dict[str, Perturbed] = {}
        factored = [c for c in found if c.format.kind == "low-rank" and c.format.rank == c.format.k8]
        if factored:
            probes["factored"] = _cut_off(context, factored, SHARE)
            if context.site.type in FEW_MATTER:
                probes["thin"] = _cut_off(context, factored, THIN_SHARE)
        for rounding, bits in (("coded", PROBED_BITS), ("one-bit", 1)):
            coded = next((c for c in found if c.format == SiteFormat("trellis", bits=bits)), None)
            steep = context.site.type in STEEP and not alone(context.site)
            if coded is not None and (bits > 1 or steep):
                probes[rounding] = coded.loss, Narrow.of(probe(context, bits))
        return Priced(found, probes, _activation_losses(context))


def _cut_off(context: SiteContext, factored: Sequence[Candidate], share: float) -> Perturbed:
    """Loss in the metric and error of the int8 factors whose bytes are nearest to that share of the dense matrix's."""
    dense = weight_bytes(context.site.shape, SiteFormat("int8"))
    nearest = min(factored, key=lambda c: abs(c.bytes - share * dense))
    view = context.at(nearest.format.rank)
    kept, f = view.components.order[: nearest.format.k8], view.factorization
    error = context.matrix - product(round_components(f.b[:, kept], f.a[kept], 8))
    return quadratic(error, context.c_in, context.c_out), Narrow.of(error).to("cpu")


def price_alone(
    sites: Sequence[Site], context: Callable[[Site], SiteContext], family: str
) -> dict[str, tuple[Candidate, ...]]:
    """Candidates of one family, without measurements of their own."""

    def priced(site: Site) -> tuple[Candidate, ...]:
        with torch.no_grad():
            return tuple(GENERATORS[family](context(site)))

    found = dict(zip((site.name for site in sites), side_by_side(priced, sites), strict=True))
    release_free_memory()
    return found


def _activation_losses(context: SiteContext) -> dict[int, float]:
    """Of the product that the matrix becomes; zeros for a table that is only looked up in."""
    if not context.roles:
        w, share = context.matrix, context.statistics.noise_share(context.site)
        pulls = share * ((context.c_out.float() @ w) * w).sum(0).double()
        return input_losses(context.c_in.diagonal().cpu(), pulls.cpu())
    w = context.weight
    if "head" not in context.roles:
        nothing = torch.zeros(w.shape[1], dtype=torch.float64)
        return input_losses(nothing, nothing)
    power = context.statistics.head_metric(context.site.shape[1]).diagonal()
    variance = context.statistics.head_variance().float()
    weight = w.new_zeros(w.shape[1])
    for v, rows in zip(variance.split(ROWS), w.split(ROWS), strict=True):
        weight += v @ rows.square()
    return input_losses(power, weight.double())


def price_all(
    model: Any,
    architecture: Described,
    statistics: Statistics,
    sites: Sequence[Site],
    context: Callable[[Site], SiteContext],
    progress: Callable[[int, int], None],
    families: Sequence[str] = FAMILIES,
) -> tuple[dict[str, tuple[Candidate, ...]], Corrections, Activations]:
    """Candidates of every matrix, by kind of rounding the factors by which their predictions are corrected, and what
    rounding of activations adds."""
    windows = statistics.held_out()
    precision = str(statistics.key["estimator"].get("precision", "float32"))
    probes = Probes(model, architecture, windows, precision)
    prices: dict[str, tuple[Candidate, ...]] = {}
    activations: dict[str, Mapping[int, float]] = {}
    for kind in dict.fromkeys(site.type for site in sites):
        members = [site for site in sites if site.type == kind]
        perturbed: dict[str, dict[str, Perturbed]] = {rounding: {} for rounding in ROUNDINGS}
        found = of_each(members, context, lambda of: price(of, families))
        for site, priced in zip(members, found, strict=True):
            prices[site.name], activations[site.name] = priced.candidates, priced.activations
            progress(len(prices), len(sites) + 1)
            for rounding, (loss, error) in priced.perturbed.items():
                perturbed[rounding][site.name] = loss, replace(error, values=kept(model, error.values))
        for group in together(members):
            for rounding, errors in perturbed.items():
                own = {site.name: errors.pop(site.name) for site in group if site.name in errors}
                probes.measure(rounding, own, ROUNDINGS[rounding])
        release_free_memory()
    vocabulary = [site for site in sites if embedding_roles(site, architecture)]
    coded = any(family.startswith(CODED_FAMILIES) for family in families)
    tables = {site.name: _table_factor(model, context(site), probes.kl) for site in vocabulary if coded}
    ranges: dict[str, float] = {}
    if isinstance(architecture, Architecture):
        body = architecture.layout.body
        inner = [site for site in sites if not embedding_roles(site, architecture)]
        ranges = squared_ranges(model, inner, windows[:FEW_WINDOWS], body)
    measured = measured_activations(model, sites_of(architecture), activations, probes.kl, ranges)
    corrections = probes.factors()
    corrections.setdefault("coded", {}).update(tables)
    progress(len(sites) + 1, len(sites) + 1)
    return prices, corrections, measured


def _table_factor(model: Any, context: SiteContext, kl: Measure) -> float:
    """Measured over predicted loss of a table whose rows all have few bits."""
    with torch.no_grad():
        metric = table_metric(context)
        noises = row_noise(metric.scaled(context.weight), metric.inputs, (PROBED_TABLE_BITS,))
        noise = noises[PROBED_TABLE_BITS]
        error = sampled_table_error(context.weight, metric, noise, seed=0)
        predicted = 0.5 * float((metric.weight * noise).sum())
        with replaced(model, {context.site.name: context.weight - error}):
            return ratio(kl.measure(), predicted)
