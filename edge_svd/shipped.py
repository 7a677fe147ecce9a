"""A torch model that computes for a while with the matrices of a checkpoint, as the device will."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from edge_svd.checkpoint import Checkpoint
from edge_svd.formats import NARROW_BLOCK
from edge_svd.loading import dense_parts
from edge_svd.models import OpenedModel
from edge_svd.planner.activation_probe import rounded_inputs
from edge_svd.planner.held_out import replaced
from edge_svd.planner.plan import Plan


@contextmanager
def as_shipped(opened: OpenedModel, checkpoint: Checkpoint, plan: Plan, names: Iterable[str]) -> Iterator[None]:
    """The matrices `names` of a plan as its checkpoint has them, dequantised fp32 [m, n], and the inputs of their
    products rounded to int8 as at run time; gradients are off. With all of the plan's matrices, learned positions ship
    too. The model's own weights come back untouched."""
    sites = {site.name: site for site in opened.sites}
    weights, blocks = {}, {}
    for name in names:
        parts = dense_parts(checkpoint, sites[name])
        weights[name] = parts[0] if len(parts) == 1 else parts[0] @ parts[1]
    for site in opened.sites:
        if site.tied_to in weights:
            weights[site.name] = weights[site.tied_to]
    if weights.keys() >= plan.sites.keys():
        weights |= _positions(opened)
    for site in opened.sites:
        owner, width = site.tied_to or site.name, site.shape[1]
        # Widths that are padded at run time keep their inputs as they are here.
        if owner in weights and site.type != "embedding" and width % NARROW_BLOCK == 0:
            blocks[site.name] = plan.sites[owner].format.inputs_a_block(width)
    with torch.no_grad(), replaced(opened.model, weights), rounded_inputs(opened.model, blocks):
        yield


def _positions(opened: OpenedModel) -> dict[str, torch.Tensor]:
    """The table of learned positions in halves, by its module; rows before that of position 0 stay."""
    before, found = opened.architecture.layout.first_position, {}
    for name, table in opened.positions().items():
        own = opened.model.get_parameter(name)[:before]
        found[name.removesuffix(".weight")] = torch.cat([own, torch.from_numpy(table).float()])
    return found
