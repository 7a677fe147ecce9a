"""How far predictions of activation rounding come true: the inputs of one type of matrix at a time are rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.formats import INT8_LIMIT, NARROW_BLOCK, WHOLE_PASS, SiteFormat
from edge_svd.planner.activations import WHOLE_STEPS
from edge_svd.planner.correction import factor
from edge_svd.planner.held_out import FEW_WINDOWS, Measure

PASS = 128
"""Tokens of a prompt that are computed together, as is usual at run time."""

COARSEST = 0.6
"""Largest step of a pass on one scale, as a share of the median input, mean over passes: rounding to larger ones is no
longer noise that the metrics price. SmolLM2's o at up to 0.5 loses what is predicted (0.0014 nats), its down at 0.65 to
0.8 twice that."""

COARSE = 31
"""Largest integer that inputs are rounded to here: 17 times the loss of int8, well above the noise of a measurement in
bfloat16."""


def round_in_blocks(x: torch.Tensor, block: int, limit: int = INT8_LIMIT) -> torch.Tensor:
    """x [..., n] with every `block` neighbours on the scale that takes the largest of them to `limit`."""
    parts = x.float().unflatten(-1, (-1, block))
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / limit
    return ((parts / scale).round() * scale).flatten(-2).to(x.dtype)


def round_by_pass(x: torch.Tensor, steps: int = WHOLE_STEPS) -> torch.Tensor:
    """x [batch, tokens, n] with every PASS neighbouring tokens on one scale, which has so many steps and holds zero."""

    def rounded(part: torch.Tensor) -> torch.Tensor:
        step = (_range(part) / steps).clamp_min(1e-30)
        return (part / step).round() * step

    parts = x.float().split(PASS, dim=1)
    return torch.cat([torch.stack([rounded(row) for row in part]) for part in parts], dim=1).to(x.dtype)


def _range(x: torch.Tensor) -> torch.Tensor:
    """Largest less least entry, zero among them."""
    return x.max().clamp_min(0) - x.min().clamp_max(0)


def squared_ranges(model: Any, sites: Sequence[Site], windows: torch.Tensor, body: str) -> dict[str, float]:
    """Site → mean squared range of its inputs in a pass of PASS tokens of `windows` [count, tokens].

    Sites whose inputs have such peaks that a step is large against most of them (COARSEST) are left out.
    """
    found: dict[str, list[float]] = {site.name: [] for site in sites}
    shares: dict[str, list[float]] = {site.name: [] for site in sites}

    def watch(name: str) -> Any:
        def before(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            for part in arguments[0].float().split(PASS, dim=1):
                span, typical = float(_range(part)), float(part.abs().median())
                found[name].append(span**2)
                shares[name].append(span / WHOLE_STEPS / max(typical, 1e-30))

        return before

    handles = [model.get_submodule(site.name).register_forward_pre_hook(watch(site.name)) for site in sites]
    try:
        with torch.no_grad():
            for ids in windows.to(model.device):
                model.get_submodule(body)(input_ids=ids[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    even = {name for name, values in shares.items() if sum(values) <= COARSEST * len(values)}
    return {name: sum(values) / len(values) for name, values in found.items() if name in even}


@contextmanager
def rounded_inputs(model: Any, blocks: Mapping[str, int], limit: int = INT8_LIMIT) -> Iterator[None]:
    """Modules by name read rounded inputs, in blocks of so many, or all of a pass on one scale (WHOLE_PASS)."""

    def hook(block: int) -> Any:
        if block == WHOLE_PASS:
            return lambda _, arguments: (round_by_pass(arguments[0], 2 * limit + 1), *arguments[1:])
        return lambda _, arguments: (round_in_blocks(arguments[0], block, limit), *arguments[1:])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(block)) for name, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measured_activations(
    model: Any,
    sites: Sequence[Site],
    predicted: Mapping[str, Mapping[int, float]],
    kl: Measure,
    ranges: Mapping[str, float],
) -> dict[str, dict[int, float]]:
    """Site → inputs a block → loss, the predictions of each type scaled to what its rounding is measured to lose.

    `sites`: all of the model's; a tied head's prediction stands under the embedding's name. `ranges`: mean squared
    ranges of the inputs of sites that may have one scale a pass; the others have no such loss.
    """
    found = {name: dict(losses) for name, losses in predicted.items()}
    for losses in found.values():
        losses.pop(WHOLE_PASS, None)
    for kind in dict.fromkeys(site.type for site in sites if site.type != "embedding"):
        members = [site for site in sites if site.type == kind and site.shape[1] % NARROW_BLOCK == 0]
        blocks = {site.name: SiteFormat("int8").inputs_a_block(site.shape[1]) for site in members}
        owners = {site.name: site.tied_to or site.name for site in members}
        expected = sum(predicted[owners[name]][block] for name, block in blocks.items())
        with rounded_inputs(model, blocks, COARSE):
            share = factor(kl.measure(FEW_WINDOWS), expected * (INT8_LIMIT / COARSE) ** 2)
        for name in owners.values():
            found[name] = {block: share * loss for block, loss in found[name].items()}
        whole = {
            site.name: ranges[site.name] * predicted[site.name][WHOLE_PASS] for site in members if site.name in ranges
        }
        if whole:
            with rounded_inputs(model, dict.fromkeys(whole, WHOLE_PASS), COARSE):
                measured = kl.measure(FEW_WINDOWS)
            share = factor(measured, sum(whole.values()) * (WHOLE_STEPS / (2 * COARSE + 1)) ** 2)
            for name, loss in whole.items():
                found[name][WHOLE_PASS] = share * loss
    return found
