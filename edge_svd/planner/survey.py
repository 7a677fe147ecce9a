"""Candidates of every matrix of a model: the price list that any number of plans are solved from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edge_svd.allocate import allocation
from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json
from edge_svd.formats import SiteFormat, weight_bytes
from edge_svd.parallel import side_by_side
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import SHARE, HeldOutKl, factor, replaced, token_losses
from edge_svd.planner.generators import GENERATORS, SiteContext
from edge_svd.runtime.memory import release_free_memory

ALIASES = {"fp16": "int16"}
DEFAULT_CANDIDATES = ("int8", "int16", "low-rank", "pivoted")
VERSION = 4


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
        prices, corrections = _from_json(read_json(file, "price list"))
    else:
        price = partial(_price, model, architecture, statistics, method, allocation_name)
        prices, corrections = _price_all(model, architecture, statistics, sites, price, progress)
        if file is not None:
            atomic_write(file, _to_json(prices, corrections))
    in_kl = allocation(allocation_name).in_kl
    prices = {site.name: _corrected(prices[site.name], corrections.get(site.name, 1.0), in_kl) for site in sites}
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


def _price(
    model: Any, architecture: Architecture, statistics: Statistics, method: str, allocation_name: str, site: Site
) -> tuple[tuple[Candidate, ...], tuple[float, torch.Tensor] | None]:
    """All candidates of one matrix, and the low-rank one that its type is perturbed with: (predicted loss, W')."""
    module = model.get_submodule(site.name)
    context = context_of(site, module.weight.detach().float(), architecture, statistics, method, allocation_name)
    context = replace(context, lookup_scale=lookup_scale(module))
    with torch.no_grad():
        found = tuple(c for kind in DEFAULT_CANDIDATES for c in GENERATORS[kind](context))
        factored = [c for c in found if c.format.kind == "low-rank" and not c.format.k16]
        if not factored:
            return found, None
        probe = min(factored, key=lambda c: abs(c.bytes - SHARE * weight_bytes(site.shape, SiteFormat("int8"))))
        kept = context.components.order[: probe.format.k8]
        return found, (probe.loss, (context.factorization.b[:, kept] @ context.factorization.a[kept]).float())


def _price_all(
    model: Any,
    architecture: Architecture,
    statistics: Statistics,
    sites: Sequence[Site],
    price: Callable[[Site], tuple[tuple[Candidate, ...], tuple[float, torch.Tensor] | None]],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, tuple[Candidate, ...]], dict[str, float]]:
    """Candidates of every matrix, and the factor by which each matrix's predictions are corrected."""
    windows = statistics.held_out()
    kl = HeldOutKl(model, windows, architecture.logit_softcap)
    prices: dict[str, tuple[Candidate, ...]] = {}
    predicted: dict[str, float] = {}
    errors: dict[str, torch.Tensor] = {}
    measured: dict[str, float] = {}
    for kind in dict.fromkeys(site.type for site in sites):
        members = [site for site in sites if site.type == kind]
        weights: dict[str, torch.Tensor] = {}
        for site, (found, probe) in zip(members, side_by_side(price, members), strict=True):
            prices[site.name] = found
            progress(len(prices), len(sites))
            if probe is not None:
                predicted[site.name], weights[site.name] = probe
                dense = model.get_submodule(site.name).weight.detach()
                errors[site.name] = (dense - weights[site.name]).to(torch.bfloat16)
        if weights:
            with replaced(model, weights):
                measured[kind] = kl.measure()
        weights.clear()
        release_free_memory()
    del kl
    precision = str(statistics.key["estimator"].get("precision", "float32"))
    tokens = token_losses(model, architecture, windows, errors, precision)
    corrections = {}
    for kind, loss in measured.items():
        members = [site for site in sites if site.type == kind and site.name in tokens]
        common = factor(loss, sum(tokens[site.name] for site in members))
        for site in members:
            corrections[site.name] = common * factor(tokens[site.name], predicted[site.name])
    return prices, corrections


def _corrected(found: Sequence[Candidate], correction: float, in_kl: bool) -> tuple[Candidate, ...]:
    """Factored candidates at their corrected price; dense ones lose little and keep their prediction."""
    return tuple(
        c
        if not c.format.factored
        else Candidate(c.format, c.bytes, c.loss * correction, c.score * (correction if in_kl else 1.0))
        for c in found
    )


def _to_json(prices: Mapping[str, Sequence[Candidate]], corrections: Mapping[str, float]) -> bytes:
    table = {
        name: [[c.format.kind, c.format.k8, c.format.k16, c.bytes, c.loss, c.score] for c in found]
        for name, found in prices.items()
    }
    return canonical_json({"prices": table, "corrections": dict(corrections)})


def _from_json(table: Any) -> tuple[dict[str, tuple[Candidate, ...]], dict[str, float]]:
    prices = {
        name: tuple(
            Candidate(SiteFormat(kind, k8, k16), size, float(loss), float(score))
            for kind, k8, k16, size, loss, score in rows
        )
        for name, rows in table["prices"].items()
    }
    return prices, {kind: float(value) for kind, value in table["corrections"].items()}
