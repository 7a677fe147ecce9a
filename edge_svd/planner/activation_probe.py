"""How far predictions of activation rounding come true: the inputs of one type of matrix at a time are rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.formats import INT8_LIMIT, NARROW_BLOCK, SiteFormat
from edge_svd.planner.correction import factor
from edge_svd.planner.held_out import FEW_WINDOWS, Measure

COARSE = 31
"""Largest integer that inputs are rounded to here: 17 times the loss of int8, well above the noise of a measurement in
bfloat16."""


def round_in_blocks(x: torch.Tensor, block: int, limit: int = INT8_LIMIT) -> torch.Tensor:
    """x [..., n] with every `block` neighbours on the scale that takes the largest of them to `limit`."""
    parts = x.float().unflatten(-1, (-1, block))
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / limit
    return ((parts / scale).round() * scale).flatten(-2).to(x.dtype)


@contextmanager
def rounded_inputs(model: Any, blocks: Mapping[str, int], limit: int = INT8_LIMIT) -> Iterator[None]:
    """Modules by name read rounded inputs, in blocks of so many."""

    def hook(block: int) -> Any:
        return lambda _, arguments: (round_in_blocks(arguments[0], block, limit), *arguments[1:])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(block)) for name, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measured_activations(
    model: Any, sites: Sequence[Site], predicted: Mapping[str, Mapping[int, float]], kl: Measure
) -> dict[str, dict[int, float]]:
    """Site → inputs a block → loss, the predictions of each type scaled to what its rounding is measured to lose.

    `sites`: all of the model's; a tied head's prediction stands under the embedding's name.
    """
    found = {name: dict(losses) for name, losses in predicted.items()}
    for kind in dict.fromkeys(site.type for site in sites if site.type != "embedding"):
        members = [site for site in sites if site.type == kind and site.shape[1] % NARROW_BLOCK == 0]
        blocks = {site.name: SiteFormat("int8").inputs_a_block(site.shape[1]) for site in members}
        owners = {site.name: site.tied_to or site.name for site in members}
        expected = sum(predicted[owners[name]][block] for name, block in blocks.items())
        with rounded_inputs(model, blocks, COARSE):
            share = factor(kl.measure(FEW_WINDOWS), expected * (INT8_LIMIT / COARSE) ** 2)
        for name in owners.values():
            found[name] = {block: share * loss for block, loss in found[name].items()}
    return found
