"""The options of `fit`: from the command line, else from a recipe, else the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.files import parse_size
from edge_svd.recipe import load_recipe
from edge_svd.recipe_check import check_recipe
from edge_svd.steps import Calibration, Planning


@dataclass(frozen=True)
class FitOptions:
    """Everything that `fit` is called with."""

    model: str
    out: Path
    target_bytes: int
    calibration: Calibration
    planning: Planning


def resolve(given: Mapping[str, Any], recipe: str | None, out: Path | None) -> FitOptions:
    """Merge the command line over the recipe; InputError if something necessary is missing or does not parse."""
    options = {key: value for key, value in given.items() if value is not None}
    if recipe is not None:
        loaded = load_recipe(recipe)
        check_recipe(loaded, given)
        options = {"model": loaded.model, **loaded.options(), **options}
    for key, how in (("model", "name a MODEL"), ("size", "give --size, or a --recipe that has one")):
        if key not in options:
            raise InputError(f"`fit` needs to know the {key}: {how}.")
    if out is None:
        raise InputError("`fit` needs to know where to write the bundle: give -o OUT.")
    size = options["size"]
    calibration, planning = Calibration(), Planning()
    seed = options.get("seed", calibration.seed)
    if not 0 <= seed < 2**32:
        raise InputError(f"The seed {seed} must lie between 0 and {2**32 - 1}.")
    return FitOptions(
        model=options["model"],
        out=out,
        target_bytes=parse_size(size) if isinstance(size, str) else size,
        calibration=Calibration(
            tuple(options.get("calibration", calibration.sources)),
            options.get("calibration_windows", calibration.windows),
            options.get("calibration_window", calibration.window),
            seed,
        ),
        planning=Planning(
            options.get("method", planning.method),
            options.get("allocation", planning.allocation),
            options.get("candidates"),
            options.get("context"),
            seed,
        ),
    )
