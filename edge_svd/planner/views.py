"""A model's matrices as candidate generators see them."""

from __future__ import annotations

from typing import Any

from edge_svd.allocate import allocation
from edge_svd.architectures import Site
from edge_svd.calibrate.statistics import Statistics
from edge_svd.described import Described
from edge_svd.planner.generators import SiteContext


def embedding_roles(site: Site, architecture: Described) -> tuple[str, ...]:
    """What a vocabulary-sized matrix is used for; empty for every other matrix."""
    if site.type == "embedding":
        return ("lookup", "head") if architecture.tied_embeddings else ("lookup",)
    return ("head",) if site.type == "lm_head" else ()


def context_of(
    site: Site,
    module: Any,
    architecture: Described,
    statistics: Statistics,
    method: str,
    strategy_name: str,
) -> SiteContext:
    """The generator's view of one matrix of a model; `module` is the one that holds it."""
    roles = embedding_roles(site, architecture)
    source, strategy = module.weight.detach(), allocation(strategy_name)
    return SiteContext(site, source, statistics, method, strategy, roles, lookup_scale(module))


def lookup_scale(module: Any) -> float:
    """What an embedding module multiplies its rows with: the metric of its output was taken behind that.

    Which of the Gemma families multiply there, and which outside, depends on the version of transformers.
    """
    return float(getattr(module, "embed_scale", 1.0))
