"""Prices of the rank components of one matrix: what dropping the tail costs, and what rounding each component costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from edge_svd.allocate import Strategy
from edge_svd.allocate.strategy import HasGradient
from edge_svd.decompose import Factorization
from edge_svd.planner.activations import handover_loss
from edge_svd.planner.loss import quadratic
from edge_svd.quantize.components import round_components
from edge_svd.quantize.rows import LIMITS


class Decomposed(HasGradient, Protocol):
    """A matrix with its statistics and its factors."""

    @property
    def matrix(self) -> torch.Tensor: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def c_in(self) -> torch.Tensor: ...

    @property
    def c_out(self) -> torch.Tensor: ...

    @property
    def factorization(self) -> Factorization: ...


@dataclass(frozen=True)
class ComponentTable:
    """Components in the order in which the allocation strategy keeps them; all in the processor's memory.

    Attributes:
        order: [r] component numbers of the factorization.
        truncation: [r + 1] predicted KL of keeping the first k, nats per token.
        score: [r + 1] the strategy's own price of the same.
        rounding: [r] predicted KL of rounding component i to int8.
        coarse: [r] the same to 4 bits.
        gain: [r] how much of that 16 bits save.
        spread: [r] root mean square of what the component hands from A to B, as its integers are scaled.
        weight: [r] what an error of one there costs, twice the KL.
    """

    order: torch.Tensor
    truncation: torch.Tensor
    score: torch.Tensor
    rounding: torch.Tensor
    coarse: torch.Tensor
    gain: torch.Tensor
    spread: torch.Tensor
    weight: torch.Tensor

    def handover(self, rank: int) -> float:
        """Predicted KL of the runtime's rounding between A and B at this rank."""
        order = torch.argsort(self.spread[:rank], descending=True, stable=True)
        return handover_loss(self.spread[order].square(), self.weight[order])


def component_table(context: Decomposed) -> ComponentTable:
    """Price every component in the KL metric, whatever metric the decomposition itself works in."""
    f = context.factorization
    order = context.strategy.order(f, context)
    b, a = f.b[:, order].float(), f.a[order].float()
    c_out, c_in = context.c_out.float(), context.c_in.float()
    cb, ca = c_out @ b, a @ c_in
    truncation = _truncation(context, b, a, cb, ca)
    rounding, coarse = (_rounding_loss(b, a, cb, ca, c_out, c_in, bits) for bits in (8, 4))
    # A 16-bit step is 256 times finer, its loss 65,536 times smaller.
    gain = rounding * (1 - 2.0**-16)
    peak = b.abs().amax(0)
    spread = (ca * a).sum(1).clamp_min(0).sqrt() * peak
    weight = (b * cb).sum(0).clamp_min(0) / torch.where(peak > 0, peak, 1.0).square()
    score = context.strategy.tail(f, order, truncation, context)
    found = (order, truncation, score, rounding, coarse, gain, spread, weight)
    return ComponentTable(*(part.cpu() for part in found))


def truncation_losses(context: Decomposed, order: torch.Tensor) -> torch.Tensor:
    """Predicted KL [r + 1] of keeping the first k components in that order, nats per token."""
    f = context.factorization
    b, a = f.b[:, order].float(), f.a[order].float()
    return _truncation(context, b, a, context.c_out.float() @ b, a @ context.c_in.float())


def _truncation(
    context: Decomposed, b: torch.Tensor, a: torch.Tensor, cb: torch.Tensor, ca: torch.Tensor
) -> torch.Tensor:
    overlap = ((b.T @ cb) * (ca @ a.T)).double()
    # tail[k] = ½ Σ_{i, j ≥ k} overlap: the loss of dropping everything from k on, cross terms included.
    tail = 0.5 * overlap.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0).clamp_min(0)
    # What the factors leave out of W (directions a singular metric cannot see) costs nothing in that metric, but a
    # method with another metric may be asked about it here.
    f = context.factorization
    base = quadratic(context.matrix - (f.b @ f.a).float(), context.c_in, context.c_out)
    return torch.cat([tail, tail.new_zeros(1)]) + base


def _rounding_loss(
    b: torch.Tensor,
    a: torch.Tensor,
    cb: torch.Tensor,
    ca: torch.Tensor,
    c_out: torch.Tensor,
    c_in: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """½ ‖b_r a_r − b̂_r â_r‖² in the metric, for every component [r].

    The error is taken as (b − b̂) a + b̂ (a − â), so that nothing cancels.
    """
    b_q, a_q, scale = round_components(b, a, bits)
    column = b.abs().amax(0) / LIMITS[bits]
    column = torch.where(column > 0, column, torch.ones_like(column))
    b_hat, a_hat = b_q.float() * column, a_q.float() * (scale.float() / column)[:, None]
    db, da = b - b_hat, a - a_hat
    cdb, cda = c_out @ db, da @ c_in
    first = (db * cdb).sum(0) * (a * ca).sum(1)
    cross = (b_hat * cdb).sum(0) * (da * ca).sum(1)
    second = (b_hat * (cb - cdb)).sum(0) * (da * cda).sum(1)
    return (0.5 * (first + 2 * cross + second)).clamp_min(0).double()
