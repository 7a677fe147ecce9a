"""Candidates of every matrix of a model: the price list that any number of plans are solved from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edge_svd.allocate import allocation
from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json
from edge_svd.formats import ACTIVATION_BLOCKS, CODED, SiteFormat, padded, weight_bytes
from edge_svd.parallel import side_by_side
from edge_svd.planner.activations import input_losses
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import SHARE, HeldOutKl, Perturbed, Probes, replaced
from edge_svd.planner.generators import GENERATORS, SiteContext
from edge_svd.planner.generators.trellis import probe, table_metric
from edge_svd.quantize.table import row_noise, sampled_table_error
from edge_svd.runtime.memory import release_free_memory

ALIASES = {"fp16": "int16"}
DEFAULT_CANDIDATES = ("int8", "int16", "low-rank", "pivoted", "blocks-2", "blocks-4", "blocks-8", "trellis")
VERSION = 11

PROBED_BITS, PROBED_TABLE_BITS = 2, 3
"""Trellis codes are perturbed with the error of this many bits."""

ROWS = 8192
"""Rows of a table looked at together."""

LEAST_FACTOR = 0.05
"""A table's prediction counts tokens that the held-out windows lack; measured on those, its loss may be far smaller."""

Activations = Mapping[str, Mapping[int, float]]
"""Site → inputs that share a scale → predicted loss of rounding its inputs, nats per token."""

ROUNDINGS = ("factored", "coded")

Corrections = Mapping[str, Mapping[str, float]]
"""Kind of rounding → site → factor."""


@dataclass(frozen=True)
class Survey:
    """Price list: site name → candidates. `key` says what it was computed from."""

    sites: tuple[Site, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    method: str
    allocation: str
    kinds: tuple[str, ...]


def candidate_kinds(text: str | None) -> tuple[str, ...]:
    """Parse `--candidates low-rank,int8,fp16`; InputError listing the known kinds otherwise."""
    if text is None:
        return DEFAULT_CANDIDATES
    kinds = tuple(dict.fromkeys(ALIASES.get(name.strip(), name.strip()) for name in text.split(",")))
    for kind in kinds:
        if kind not in GENERATORS:
            known = ", ".join([*GENERATORS.names, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])
            raise InputError(f"Unknown candidate kind {kind!r}; known: {known}.")
    return kinds


def embedding_roles(site: Site, architecture: Architecture) -> tuple[str, ...]:
    """What a vocabulary-sized matrix is used for; empty for every other matrix."""
    if site.type == "embedding":
        return ("lookup", "head") if architecture.tied_embeddings else ("lookup",)
    return ("head",) if site.type == "lm_head" else ()


def context_of(
    site: Site,
    weight: torch.Tensor,
    architecture: Architecture,
    statistics: Statistics,
    method: str,
    strategy_name: str,
) -> SiteContext:
    """The generator's view of one matrix of a model."""
    roles = embedding_roles(site, architecture)
    return SiteContext(site, weight, statistics, method, allocation(strategy_name), roles)


def lookup_scale(module: Any) -> float:
    """What an embedding module multiplies its rows with: the metric of its output was taken behind that.

    Which of the Gemma families multiply there, and which outside, depends on the version of transformers.
    """
    return float(getattr(module, "embed_scale", 1.0))


def survey(
    model: Any,
    architecture: Architecture,
    statistics: Statistics,
    *,
    method: str,
    allocation_name: str,
    kinds: Sequence[str],
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Price every candidate of every matrix; a vocabulary-sized matrix always has its dense candidates.

    With `cache`, the prices are kept beside the statistics, so that the next budget is planned in a moment.
    """
    allocation(allocation_name)
    sites = tuple(site for site in sites_of(architecture) if not site.tied_to)
    identity = {"version": VERSION, "statistics": dict(statistics.key), "method": method, "allocation": allocation_name}
    file = cache / f"prices-{cache_key(identity)[:16]}.json" if cache is not None else None
    if file is not None and file.exists():
        prices, corrections, activations = _from_json(read_json(file, "price list"))
    else:

        def context(site: Site) -> SiteContext:
            module = model.get_submodule(site.name)
            own = context_of(site, module.weight.detach().float(), architecture, statistics, method, allocation_name)
            return replace(own, lookup_scale=lookup_scale(module))

        prices, corrections, activations = _price_all(model, architecture, statistics, sites, context, progress)
        if file is not None:
            atomic_write(file, _to_json(prices, corrections, activations))
    in_kl = allocation(allocation_name).in_kl
    prices = {
        site.name: _with_activations(
            _corrected(prices[site.name], site.name, corrections, in_kl), activations[site.name], in_kl, site.shape
        )
        for site in sites
    }
    tables = {site.name for site in sites if embedding_roles(site, architecture)}
    chosen = {name: tuple(c for c in found if c.format.family in kinds) for name, found in prices.items()}
    for name in tables:
        if not chosen[name]:
            # Candidates limited to low rank leave no choice for the vocabulary tables, which are never factored: int8.
            chosen[name] = tuple(c for c in prices[name] if c.format.kind == "int8")
    for name, found in chosen.items():
        if not found:
            # A matrix too small for any aligned rank below break-even.
            chosen[name] = tuple(c for c in prices[name] if c.format.kind == "int8")
    return Survey(sites, chosen, method, allocation_name, tuple(kinds))


@dataclass(frozen=True)
class _Priced:
    """One matrix: its candidates, by kind of rounding the error that its type is perturbed with, and what rounding its
    inputs loses."""

    candidates: tuple[Candidate, ...]
    perturbed: Mapping[str, Perturbed]
    activations: Mapping[int, float]


def _price(context: SiteContext) -> _Priced:
    with torch.no_grad():
        found = tuple(c for kind in DEFAULT_CANDIDATES for c in GENERATORS[kind](context))
        probes: dict[str, Perturbed] = {}
        factored = [c for c in found if c.format.kind == "low-rank" and not c.format.k16]
        if factored:
            dense = weight_bytes(context.site.shape, SiteFormat("int8"))
            nearest = min(factored, key=lambda c: abs(c.bytes - SHARE * dense))
            kept = context.components.order[: nearest.format.k8]
            remaining = (context.factorization.b[:, kept] @ context.factorization.a[kept]).float()
            probes["factored"] = nearest.loss, context.weight - remaining
        coded = [] if context.roles else [c for c in found if c.format.bits == PROBED_BITS]
        if coded:
            probes["coded"] = coded[0].loss, probe(context, PROBED_BITS)
        return _Priced(found, probes, _activation_losses(context))


def _activation_losses(context: SiteContext) -> dict[int, float]:
    """Of the product that the matrix becomes; zeros for a table that is only looked up in."""
    w = context.weight
    if not context.roles:
        return input_losses(context.c_in.diagonal(), ((context.c_out.float() @ w) * w).sum(0).double())
    power = context.statistics.head_metric(context.site.shape[1]).diagonal()
    if "head" not in context.roles:
        return input_losses(power, torch.zeros_like(power))
    variance = context.statistics.head_variance().float()
    weight = w.new_zeros(w.shape[1])
    for v, rows in zip(variance.split(ROWS), w.split(ROWS), strict=True):
        weight += v @ rows.square()
    return input_losses(power, weight.double())


def _price_all(
    model: Any,
    architecture: Architecture,
    statistics: Statistics,
    sites: Sequence[Site],
    context: Callable[[Site], SiteContext],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, tuple[Candidate, ...]], Corrections, Activations]:
    """Candidates of every matrix, by kind of rounding the factors by which their predictions are corrected, and what
    rounding of activations adds."""
    windows = statistics.held_out()
    precision = str(statistics.key["estimator"].get("precision", "float32"))
    kl = HeldOutKl(model, windows, architecture.logit_softcap, precision)
    probes = Probes(model, architecture, kl)
    prices: dict[str, tuple[Candidate, ...]] = {}
    activations: dict[str, Mapping[int, float]] = {}
    for kind in dict.fromkeys(site.type for site in sites):
        members = [site for site in sites if site.type == kind]
        perturbed: dict[str, dict[str, Perturbed]] = {rounding: {} for rounding in ROUNDINGS}
        for site, priced in zip(members, side_by_side(lambda s: _price(context(s)), members), strict=True):
            prices[site.name], activations[site.name] = priced.candidates, priced.activations
            progress(len(prices), len(sites) + 1)
            for rounding, error in priced.perturbed.items():
                perturbed[rounding][site.name] = error
        for rounding in ROUNDINGS:
            probes.measure(rounding, perturbed.pop(rounding))
        release_free_memory()
    vocabulary = [site for site in sites if embedding_roles(site, architecture)]
    tables = {site.name: _table_factor(model, context(site), kl) for site in vocabulary}
    del kl, probes.kl
    release_free_memory()
    factors = probes.factors(windows, precision)
    progress(len(sites) + 1, len(sites) + 1)
    corrections = {"factored": factors.get("factored", {}), "coded": {**factors.get("coded", {}), **tables}}
    return prices, corrections, activations


def _table_factor(model: Any, context: SiteContext, kl: HeldOutKl) -> float:
    """Measured over predicted loss of a table whose rows all have few bits."""
    with torch.no_grad():
        metric = table_metric(context)
        noises = row_noise(metric.scaled(context.weight), metric.inputs, (PROBED_TABLE_BITS,))
        noise = noises[PROBED_TABLE_BITS]
        error = sampled_table_error(context.weight, metric, noise, seed=0)
        predicted = 0.5 * float((metric.weight * noise).sum())
        with replaced(model, {context.site.name: context.weight - error}):
            return max(kl.measure() / max(predicted, 1e-30), LEAST_FACTOR)


def _corrected(found: Sequence[Candidate], name: str, corrections: Corrections, in_kl: bool) -> tuple[Candidate, ...]:
    """Candidates at their corrected price; 8 and 16 bits lose little and keep their prediction."""

    def corrected(c: Candidate) -> Candidate:
        which = "factored" if c.format.factored else "coded" if c.format.kind in (*CODED, "blocks") else ""
        share = corrections.get(which, {}).get(name, 1.0)
        return Candidate(c.format, c.bytes, c.loss * share, c.score * (share if in_kl else 1.0))

    return tuple(corrected(c) for c in found)


def _with_activations(
    found: Sequence[Candidate], losses: Mapping[int, float], in_kl: bool, shape: tuple[int, int]
) -> tuple[Candidate, ...]:
    """Candidates with what rounding their inputs adds; those of one scale a row in every number of inputs a block."""

    def variants(c: Candidate) -> Iterator[Candidate]:
        usual = c.format.inputs_a_block(padded(shape[1]))
        others = [] if c.format.factored or c.format.kind == "blocks" else ACTIVATION_BLOCKS
        for block in (c.format.block, *others):
            fmt = replace(c.format, block=block)
            if block == c.format.block or (block != usual and fmt.fits(shape)):
                added = losses[block or usual]
                yield Candidate(fmt, c.bytes, c.loss + added, c.score + (added if in_kl else 0.0))

    return tuple(made for c in found for made in variants(c))


def _to_json(prices: Mapping[str, Sequence[Candidate]], corrections: Corrections, activations: Activations) -> bytes:
    table = {name: [[c.format.to_json(), c.bytes, c.loss, c.score] for c in found] for name, found in prices.items()}
    return canonical_json(
        {
            "prices": table,
            "corrections": {which: dict(factors) for which, factors in corrections.items()},
            "activations": {
                name: {str(block): loss for block, loss in losses.items()} for name, losses in activations.items()
            },
        }
    )


def _from_json(table: Any) -> tuple[dict[str, tuple[Candidate, ...]], Corrections, Activations]:
    prices = {
        name: tuple(
            Candidate(SiteFormat.from_json(fmt), size, float(loss), float(score)) for fmt, size, loss, score in rows
        )
        for name, rows in table["prices"].items()
    }
    corrections = {
        which: {name: float(value) for name, value in factors.items()}
        for which, factors in table["corrections"].items()
    }
    activations = {
        name: {int(block): float(loss) for block, loss in losses.items()}
        for name, losses in table["activations"].items()
    }
    return prices, corrections, activations
