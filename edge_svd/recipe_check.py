"""Whether a recipe's values name what exists: methods, allocations, candidates, and options that `fit` has."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from edge_svd.allocate import allocation
from edge_svd.calibrate.sources import parse_source
from edge_svd.decompose import decompose
from edge_svd.errors import InputError
from edge_svd.planner.survey import candidate_kinds
from edge_svd.recipe import Recipe
from edge_svd.steps import kv_cache_kind

CHECKS: dict[str, Callable[[Any], Any]] = {
    "method": decompose,
    "allocation": allocation,
    "candidates": candidate_kinds,
    "kv_cache": kv_cache_kind,
    "calibration": lambda sources: [parse_source(source) for source in sources],
}


def check_recipe(recipe: Recipe, options: Collection[str]) -> None:
    """InputError that points at the line of the first value that names nothing known.

    `options` are the keys that `fit` takes: one that it does not is refused and never left out in silence.
    """
    for key, value in recipe.options().items():
        if key not in options:
            raise InputError(f"{recipe.where(key)}: `fit` has no option {key!r} yet; remove that line.")
        if key in CHECKS:
            try:
                CHECKS[key](value)
            except InputError as error:
                raise InputError(f"{recipe.where(key)}: {error}") from None
