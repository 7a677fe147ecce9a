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
from edge_svd.parallel import side_by_side
from edge_svd.quantize.trellis import InputFactor, Trellis, round_trellis, row_scale, sampled_rows
from edge_svd.trellis_code import trellis_code


@dataclass(frozen=True)
class TableMetric:
    """What errors of a table cost once its columns are divided by `columns`.

    Attributes:
        columns: bfloat16 [n], each column's root mean square among rows of one size: some are several times as large
            as others, and a row has but one scale.
        inputs: the shared feedback.
        weight: float64 [rows]; ½ weight · mean of η² is what a row loses, nats per token.
    """

    columns: torch.Tensor
    inputs: InputFactor
    weight: torch.Tensor

    @classmethod
    def of(
        cls, w: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], *, columns: bool = True
    ) -> TableMetric:
        """For W [rows, n], from (row weights [rows], metric [n, n]) of every use of the table."""
        sizes = _column_sizes(w) if columns else torch.ones(w.shape[1], dtype=torch.bfloat16)
        scale = sizes.double()
        parts = [(rows, metric * scale[:, None] * scale) for rows, metric in parts]
        inputs = InputFactor.of(torch.stack([float(rows.mean()) * metric for rows, metric in parts]).sum(0))
        weight = torch.zeros_like(parts[0][0])
        for rows, metric in parts:
            ordered = inputs.order[inputs.order < len(metric)]
            wide = torch.zeros(len(inputs.order), len(inputs.order), dtype=torch.float64)
            wide[: len(metric), : len(metric)] = metric[ordered][:, ordered]
            weight = weight + rows * float(inputs.factor.spread(wide).sum())
        return cls(sizes, inputs, weight)

    def scaled(self, w: torch.Tensor) -> torch.Tensor:
        """W [rows, n] with its columns divided, as it is rounded."""
        return w / self.columns.to(w.dtype)


def _column_sizes(w: torch.Tensor) -> torch.Tensor:
    total, rows = torch.zeros(w.shape[1], dtype=torch.float64), 0
    for piece in w.split(8192):
        power = piece.double().square()
        mean = power.mean(1, keepdim=True)
        kept = mean[:, 0] > 0
        total += (power[kept] / mean[kept]).sum(0)
        rows += int(kept.sum())
    found = (total / max(rows, 1)).sqrt().to(torch.bfloat16)
    return torch.where(found > 0, found, torch.ones_like(found))


def row_noise(w: torch.Tensor, inputs: InputFactor, widths: Sequence[int] = TRELLIS_BITS) -> dict[int, torch.Tensor]:
    """Bits → expected mean of η² in each row, float64 [rows]."""
    alone = torch.ones(0)
    return {
        bits: torch.cat([row_scale(piece, inputs, alone, trellis_code(bits))[1] for piece in w.split(8192)])
        for bits in widths
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

    def rounded(width: int) -> tuple[torch.Tensor, Trellis]:
        rows = torch.nonzero(bits == width)[:, 0]
        return rows, round_trellis(w[rows], metric.inputs, metric.weight[rows], width)

    widths = [width for width, _ in groups_of(bits)]
    return dict(zip(widths, side_by_side(rounded, widths), strict=True))


def sampled_table_error(w: torch.Tensor, metric: TableMetric, noise: torch.Tensor, seed: int) -> torch.Tensor:
    """An error of W [rows, n] fp32 as a rounding makes them whose mean η² in each row is noise [rows]."""
    return sampled_rows(metric.scaled(w), metric.inputs, noise, seed) * metric.columns.float()
