"""Prices of the rank components of one matrix: what dropping the tail costs, and what rounding each component costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edge_svd.quantize.components import round_components

if TYPE_CHECKING:
    from edge_svd.planner.generators.context import SiteContext


@dataclass(frozen=True)
class ComponentTable:
    """Components in the order in which the allocation strategy keeps them.

    Attributes:
        order: [r] component numbers of the factorization.
        truncation: [r + 1] predicted KL of keeping the first k, nats per token.
        score: [r + 1] the strategy's own price of the same.
        rounding: [r] predicted KL of rounding component i to int8.
        gain: [r] how much of that 16 bits save.
    """

    order: torch.Tensor
    truncation: torch.Tensor
    score: torch.Tensor
    rounding: torch.Tensor
    gain: torch.Tensor


def component_table(context: SiteContext) -> ComponentTable:
    """Price every component in the KL metric, whatever metric the decomposition itself works in."""
    f = context.factorization
    order = context.strategy.order(f, context)
    b, a = f.b[:, order], f.a[order]
    cb, ca = context.c_out @ b, a @ context.c_in
    overlap = (b.T @ cb) * (ca @ a.T)
    # tail[k] = ½ Σ_{i, j ≥ k} overlap: the loss of dropping everything from k on, cross terms included.
    tail = 0.5 * overlap.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0).clamp_min(0)
    # What the factors leave out of W (directions a singular metric cannot see) costs nothing in that metric, but a method
    # with another metric may be asked about it here.
    rest = context.w - f.b @ f.a
    base = max(0.5 * float(((context.c_out @ rest) * (rest @ context.c_in)).sum()), 0.0)
    truncation = torch.cat([tail, tail.new_zeros(1)]) + base
    rounding = {bits: _rounding_loss(b, a, cb, ca, context, bits) for bits in (8, 16)}
    return ComponentTable(
        order, truncation, context.strategy.tail(f, order, truncation, context), rounding[8], (rounding[8] - rounding[16]).clamp_min(0)
    )


def _rounding_loss(
    b: torch.Tensor, a: torch.Tensor, cb: torch.Tensor, ca: torch.Tensor, context: SiteContext, bits: int
) -> torch.Tensor:
    """½ ‖b_r a_r − s_r b̂_r â_r‖² in the metric, for every component [r]."""
    b_q, a_q, scale = round_components(b, a, bits)
    b_hat, a_hat = b_q.double() * scale.double(), a_q.double()
    own = (b * cb).sum(0) * (a * ca).sum(1)
    cross = (b_hat * cb).sum(0) * (a_hat * ca).sum(1)
    other = (b_hat * (context.c_out @ b_hat)).sum(0) * (a_hat * (a_hat @ context.c_in)).sum(1)
    return (0.5 * (own - 2 * cross + other)).clamp_min(0)
