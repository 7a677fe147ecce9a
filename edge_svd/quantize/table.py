"""Vocabulary-sized tables in trellis codes, more bits for the rows that text uses more.

An error e of row v costs ½ eᵀ (f_v L + h_v H) e, f_v how often the token is looked up and L the metric of what that
feeds, h_v the variance of its logit and H the second moment of the head's input. All rows share one feedback, in the
mean metric, and differ in weight. Bits are dealt out by a price: a row takes those that minimise loss + price · bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edge_svd.formats import TRELLIS_BITS
from edge_svd.quantize.trellis import InputFactor, Trellis, round_trellis, row_scale
from edge_svd.trellis_code import trellis_code


@dataclass(frozen=True)
class TableMetric:
    """`inputs`: the shared feedback; `weight` float64 [rows]: ½ weight · noise is what a row loses, nats per token."""

    inputs: InputFactor
    weight: torch.Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> TableMetric:
        """From (row weights [rows], metric [n, n]) of every use of the table."""
        inputs = InputFactor.of(sum(float(weight.mean()) * metric for weight, metric in parts) + 0 * parts[0][1])
        weight = torch.zeros_like(parts[0][0])
        for rows, metric in parts:
            ordered = inputs.order[inputs.order < len(metric)]
            wide = torch.zeros(len(inputs.order), len(inputs.order), dtype=torch.float64)
            wide[: len(metric), : len(metric)] = metric[ordered][:, ordered]
            weight = weight + rows * float(inputs.factor.spread(wide).sum())
        return cls(inputs, weight)


def row_noise(w: torch.Tensor) -> dict[int, torch.Tensor]:
    """Bits → expected squared error of a weight in each row, float64 [rows]."""
    return {
        bits: torch.cat([row_scale(piece, trellis_code(bits))[1] for piece in w.split(8192)]) for bits in TRELLIS_BITS
    }


def dealt(metric: TableMetric, noise: dict[int, torch.Tensor], price: float) -> torch.Tensor:
    """Bits of every row [rows] at a price, nats per token a bit of all of a row's weights."""
    bits = torch.tensor(TRELLIS_BITS)
    losses = torch.stack([0.5 * metric.weight * noise[int(b)] + price * int(b) for b in bits])
    return bits[losses.argmin(0)]


def groups_of(bits: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """(bits, rows) of every group that is not empty, most bits first."""
    counts = [(width, int((bits == width).sum())) for width in sorted(TRELLIS_BITS, reverse=True)]
    return tuple((width, count) for width, count in counts if count)


def dealt_as(metric: TableMetric, noise: dict[int, torch.Tensor], groups: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Bits of every row [rows] so that the groups have these very sizes: what a row would gain by a bit decides."""
    gain = metric.weight * noise[TRELLIS_BITS[1]]
    order = torch.argsort(gain, descending=True, stable=True)
    bits, start = torch.empty(len(gain), dtype=torch.long), 0
    for width, count in groups:
        bits[order[start : start + count]] = width
        start += count
    return bits


def round_table(w: torch.Tensor, metric: TableMetric, bits: torch.Tensor) -> dict[int, tuple[torch.Tensor, Trellis]]:
    """Bits → (its rows, rising; their rounding) for W [rows, n] and bits [rows], most bits first."""
    made = {}
    for width, _ in groups_of(bits):
        rows = torch.nonzero(bits == width)[:, 0]
        made[width] = (rows, round_trellis(w[rows], metric.inputs, metric.weight[rows], width))
    return made
