"""The options of `fit`: from the command line, else from a recipe, else the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.devices import load_profile
from edge_svd.encoders.opened import encoder_family
from edge_svd.errors import InputError
from edge_svd.files import format_size, parse_size
from edge_svd.planner.targets import Targets
from edge_svd.recipe import load_recipe
from edge_svd.recipe_check import check_recipe
from edge_svd.steps import Calibration, Planning, steps_of, usual_calibration


@dataclass(frozen=True)
class FitOptions:
    """Everything that `fit` is called with."""

    model: str
    out: Path
    targets: Targets
    calibration: Calibration
    planning: Planning
    encoder: bool = False
    """Whether the model embeds sentences instead of writing text."""


def resolve(given: Mapping[str, Any], recipe: str | None, out: Path | None) -> FitOptions:
    """Merge the command line over the recipe; InputError if something necessary is missing or does not parse."""
    options = {key: value for key, value in given.items() if value is not None}
    if recipe is not None:
        loaded = load_recipe(recipe)
        check_recipe(loaded, given)
        options = {"model": loaded.model, **loaded.options(), **options}
    if "model" not in options:
        raise InputError("`fit` needs to know the model: name a MODEL.")
    targets = targets_of(options)
    if out is None:
        raise InputError("`fit` needs to know where to write the bundle: give -o OUT.")
    calibration, planning = usual_calibration(options["model"]), Planning()
    seed = options.get("seed", calibration.seed)
    if not 0 <= seed < 2**32:
        raise InputError(f"The seed {seed} must lie between 0 and {2**32 - 1}.")
    return FitOptions(
        model=options["model"],
        out=out,
        targets=targets,
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
            options.get("prompt_chunk", planning.prompt_chunk),
            options.get("device", planning.device),
            steps_of(options["tune"]) if "tune" in options else 0,
            refine=options.get("refine", planning.refine),
            kv_cache=options.get("kv_cache", planning.kv_cache),
            rotate=options.get("rotate", planning.rotate),
        ),
        encoder=encoder_family(options["model"]),
    )


def targets_of(options: Mapping[str, Any]) -> Targets:
    """From `size`, `ram` (text or bytes), `min_decode_tps`, `min_prefill_tps` and `device`: a device alone asks
    for what it has free.

    InputError if there is no budget at all, or the targets contradict the device.
    """
    size, ram, device = options.get("size"), options.get("ram"), options.get("device")
    size_bytes, ram_bytes = (parse_size(value) if isinstance(value, str) else value for value in (size, ram))
    if device is not None:
        facts = load_profile(device).device
        if ram_bytes is not None and ram_bytes > facts.memory_bytes:
            raise InputError(
                f"--ram {format_size(ram_bytes)} contradicts --device {device}, which has "
                f"{format_size(facts.memory_bytes)}, {format_size(facts.free_bytes)} of them free."
            )
        if ram_bytes is None and size_bytes is None:
            ram_bytes = facts.free_bytes
    if size_bytes is None and ram_bytes is None:
        raise InputError("A plan needs to know the size: give --size, --ram, a --device, or a --recipe with one.")
    return Targets(size_bytes, ram_bytes, options.get("min_decode_tps"), options.get("min_prefill_tps"))


def names_of(text: str) -> tuple[str, ...]:
    """Names with commas between them; what follows a comma belongs to the name before where it is PARAMETER=VALUE."""
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if found and "=" in part.partition(":")[0]:
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return tuple(dict.fromkeys(found))


def ratios_of(text: str, option: str = "--ratios", example: str = "0.8,0.6") -> tuple[float, ...]:
    """Numbers with commas between them; InputError naming the option on anything else."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise InputError(f"{option} {text!r} must be numbers with commas between them, like {example}.") from None


def sizes_of(text: str) -> tuple[int, ...]:
    """Bytes of sizes with commas between them, each as `--size` takes it; InputError on anything else."""
    return tuple(dict.fromkeys(parse_size(part.strip()) for part in text.split(",") if part.strip()))
