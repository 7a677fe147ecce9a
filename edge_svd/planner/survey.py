"""Candidates of every matrix of a model: the price list that any number of plans are solved from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_svd.allocate import allocation
from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.compute_device import computing
from edge_svd.described import Described
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json
from edge_svd.formats import ACTIVATION_BLOCKS, BLOCKED, CODED, WHOLE_PASS, SiteFormat, padded
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import SHARE, THIN_SHARE
from edge_svd.planner.generators import GENERATORS, SiteContext
from edge_svd.planner.pricing import (
    CODED_FAMILIES,
    FAMILIES,
    RESIDENT_FAMILIES,
    Activations,
    Corrections,
    price_all,
    price_alone,
)
from edge_svd.planner.views import context_of, embedding_roles

ALIASES = {"fp16": "int16"}
VERSION = 20


@dataclass(frozen=True)
class Survey:
    """Price list: site name → candidates. `key` says what it was computed from."""

    sites: tuple[Site, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    method: str
    allocation: str
    kinds: tuple[str, ...]


def candidate_kinds(text: str | None, resident: bool = False) -> tuple[str, ...]:
    """Parse `--candidates low-rank,int8,fp16`; InputError listing the known kinds otherwise. Without any, all that can
    win: `resident` says that memory or time is limited, not the size alone."""
    if text is None:
        return (*FAMILIES, *RESIDENT_FAMILIES) if resident else FAMILIES
    kinds = tuple(dict.fromkeys(ALIASES.get(name.strip(), name.strip()) for name in text.split(",")))
    for kind in kinds:
        if kind not in GENERATORS:
            known = ", ".join([*GENERATORS.names, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])
            raise InputError(f"Unknown candidate kind {kind!r}; known: {known}.")
    return kinds


def survey(
    model: Any,
    architecture: Described,
    statistics: Statistics,
    *,
    method: str,
    allocation_name: str,
    kinds: Sequence[str],
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Price every candidate of every matrix; a vocabulary-sized matrix always has its dense candidates.

    With `cache`, the prices are kept beside the statistics, so that the next budget is planned in a moment. Families
    that are not among `kinds` are not priced.
    """
    # Strategies that price alike share one price list.
    pricing = allocation(allocation_name).priced_as
    sites = tuple(site for site in sites_of(architecture) if not site.tied_to)
    identity = {"version": VERSION, "statistics": dict(statistics.key), "method": method, "allocation": pricing}
    file = cache / f"prices-{cache_key(identity)[:16]}.json" if cache is not None else None

    def context(site: Site) -> SiteContext:
        return context_of(site, model.get_submodule(site.name), architecture, statistics, method, pricing)

    # Vocabulary tables, and matrices too small to be factored, fall back on int8; what trellis codes lose corrects the
    # predictions of blocks.
    wanted = {*kinds, "int8", *("trellis" for kind in kinds if kind.startswith(CODED_FAMILIES))}
    families = tuple(family for family in FAMILIES if family in wanted)
    if file is not None and not file.exists() and families != FAMILIES:
        file = file.with_name(f"{file.stem}-{'-'.join(families)}.json")  # a list of all serves as well, if there is one
    if file is not None and file.exists():
        prices, corrections, activations = _from_json(read_json(file, "price list"))
    else:
        # An encoder's measurements are small, and run where its tokenizer puts their inputs.
        with computing(model) if isinstance(architecture, Architecture) else nullcontext():
            prices, corrections, activations = price_all(
                model, architecture, statistics, sites, context, progress, families
            )
        if file is not None:
            atomic_write(file, _to_json(prices, corrections, activations))
    for family in (kind for kind in RESIDENT_FAMILIES if kind in kinds):
        own = file.with_name(f"{file.stem}-{family}.json") if file is not None else None
        if own is not None and own.exists():
            more, _, _ = _from_json(read_json(own, "price list"))
        else:
            more = price_alone(sites, context, family)
            if own is not None:
                atomic_write(own, _to_json(more, {}, {}))
        prices = {name: (*found, *more[name]) for name, found in prices.items()}
    in_kl = allocation(allocation_name).in_kl
    prices = {
        site.name: _with_activations(
            corrected(prices[site.name], site.name, site.shape, corrections, in_kl),
            activations[site.name],
            in_kl,
            site.shape,
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


def _between(thin: float, thick: float, share: float) -> float:
    """The factor at a rank whose int8 factors have that share of the dense bytes, from those at the two measured ones:
    straight between the logarithms, level outside."""
    at = math.log(share / THIN_SHARE) / math.log(SHARE / THIN_SHARE)
    at = min(max(at, 0.0), 1.0)
    return float(thin ** (1 - at) * thick**at)


def corrected(
    found: Sequence[Candidate], name: str, shape: tuple[int, int], corrections: Corrections, in_kl: bool
) -> tuple[Candidate, ...]:
    """Candidates of an m x n matrix at their corrected price; 8 and 16 bits lose little and keep their prediction."""

    def priced(c: Candidate) -> Candidate:
        which = "factored" if c.format.factored else "coded" if c.format.kind in (*CODED, *BLOCKED) else ""
        share = corrections.get(which, {}).get(name, 1.0)
        if c.format.factored and name in corrections.get("thin", {}):
            share = _between(corrections["thin"][name], share, c.format.rank * sum(shape) / math.prod(shape))
        if c.format.kind == "trellis" and c.format.bits == 1:
            share = corrections.get("one-bit", {}).get(name, share)
        return Candidate(c.format, c.bytes, c.loss * share, c.score * (share if in_kl else 1.0))

    return tuple(priced(c) for c in found)


def _with_activations(
    found: Sequence[Candidate], losses: Mapping[int, float], in_kl: bool, shape: tuple[int, int]
) -> tuple[Candidate, ...]:
    """Candidates with what rounding their inputs adds; those of one scale a row in every number of inputs a block."""

    def variants(c: Candidate) -> Iterator[Candidate]:
        usual = c.format.inputs_a_block(padded(shape[1]))
        others = () if c.format.factored or c.format.kind in BLOCKED else ACTIVATION_BLOCKS
        if c.format.kind == "int8" and WHOLE_PASS in losses:
            others = (*others, WHOLE_PASS)
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
