"""Trellis codes of 1 to 6 bits a weight: for the matrices as a whole, for the vocabulary's tables row by row."""

from __future__ import annotations

import math

import numpy as np
import torch

from edge_svd.formats import TRELLIS_BITS, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.quantize.table import TableMetric, dealt, dealt_as, groups_of, row_noise
from edge_svd.quantize.trellis import predicted_loss, round_trellis, sampled_error

PRICES = 24
"""Mixes of bits offered for a table."""

UNSEEN = 0.25
"""Share of a token's frequency that comes from the model's own predictions instead of the text: what a short text does
not contain is looked up all the same."""

ANY = 0.1
"""Share of that which is the same for every token."""

FEED_FORWARD = ("gate", "up", "gate_up", "down")
MASSIVE = 0.1
"""Share of the metric of the inputs in a single one."""


@GENERATORS.register("trellis")
def trellis(context: SiteContext) -> list[Candidate]:
    """One candidate a number of bits; for a table, one a price of bits."""
    if context.roles:
        return _tables(context)
    found = []
    for bits in TRELLIS_BITS:
        fmt = SiteFormat("trellis", bits=bits)
        if fmt.fits(context.site.shape):
            loss = predicted_loss(context.weight, context.inputs, context.outputs, bits)
            error = None if context.strategy.in_kl else _sampled(context, bits)
            score = loss if error is None else context.strategy.rounding(error, loss, context)
            found.append(Candidate(fmt, weight_bytes(context.site.shape, fmt), loss, score))
    return found


def _sampled(context: SiteContext, bits: int) -> torch.Tensor:
    return sampled_error(context.weight, context.inputs, context.outputs, bits, seed=bits)


def probe(context: SiteContext, bits: int) -> torch.Tensor:
    """The error [m, n] of rounding by which predictions are checked. For most feed-forward matrices a random one of the
    size and direction that rounding makes: they round as predicted, and are three quarters of the work. Where one input
    outweighs the others, the code spends its best levels there, and no prediction knows that."""
    weight = context.inputs.factor.plain
    massive = float(weight.max() / weight.sum().clamp_min(1e-300)) > MASSIVE
    if context.site.type in FEED_FORWARD and not massive:
        return _sampled(context, bits)
    made = round_trellis(context.weight, context.inputs, context.outputs, bits)
    return context.weight - made.matrix()[:, : context.site.shape[1]]


def table_metric(context: SiteContext, *, columns: bool = True) -> TableMetric:
    """What errors of a table's rows cost, with tokens that the calibration text lacks counted in.

    `columns`: for a table whose columns are brought to one size first.
    """
    variance = context.statistics.head_variance()
    seen = context.statistics.token_frequency()
    uniform = torch.full_like(seen, 1 / len(seen))
    expected = (1 - ANY) * variance / variance.sum() + ANY * uniform
    parts = []
    if "lookup" in context.roles:
        frequency = (1 - UNSEEN) * seen + UNSEEN * expected
        parts.append((frequency, context.statistics.c_out(context.site) * context.lookup_scale**2))
    if "head" in context.roles:
        smooth = variance + ANY * float(variance.mean())
        parts.append((smooth, context.statistics.head_metric(context.site.shape[1])))
    return TableMetric.of(context.weight, parts, columns=columns)


def _tables(context: SiteContext) -> list[Candidate]:
    metric = table_metric(context)
    noise = row_noise(metric.scaled(context.weight), metric.inputs)
    # From the price at which nearly every row takes most bits to that at which nearly every row takes fewest.
    gains = 0.5 * metric.weight * (noise[1] - noise[2])
    fine = 0.5 * metric.weight * (noise[5] - noise[6])
    low = max(float(fine.quantile(0.02)) if len(fine) < 2**24 else float(fine.median()) / 10, 1e-300)
    high = max(float(gains.max()) * 0.2, 2 * low)
    found: dict[SiteFormat, Candidate] = {}
    for price in np.exp(np.linspace(math.log(low), math.log(high), PRICES)):
        fmt = SiteFormat("table", rows=groups_of(dealt(metric, noise, float(price))))
        bits = dealt_as(metric, noise, fmt.rows)
        chosen = torch.stack([noise[int(width)] for width in TRELLIS_BITS]).gather(0, bits[None] - 1)[0]
        loss = 0.5 * float((metric.weight * chosen).sum())
        found[fmt] = Candidate(fmt, weight_bytes(context.site.shape, fmt), loss, loss)
    return list(found.values())
