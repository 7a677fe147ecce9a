"""Low rank without the k² numbers that two factors hold too many: pivot rows or pivot columns, and coefficients."""

from __future__ import annotations

import math

import numpy as np

from edge_svd.formats import ALIGNMENT, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.planner.handover import handover_loss
from edge_svd.planner.loss import quadratic
from edge_svd.quantize.pivoted import Pivoted, round_pivoted

PROBES = (0.25, 0.6, 0.95)
"""Shares of the full rank at which the loss by rounding is computed; it changes slowly in between."""

LEAST = 1e-12


@GENERATORS.register("row-pivoted")
def row_pivoted(context: SiteContext) -> list[Candidate]:
    """Some outputs from the input, the others from those; int8, cheaper than the dense int8 matrix at every rank."""
    return _candidates(context, "row-pivoted")


@GENERATORS.register("column-pivoted")
def column_pivoted(context: SiteContext) -> list[Candidate]:
    """All outputs from some of the inputs, to which the others have been added; the same sizes."""
    return _candidates(context, "column-pivoted")


def rounded(context: SiteContext, fmt: SiteFormat) -> Pivoted:
    """The parts that ship in this format."""
    kept = context.components.order[: fmt.rank]
    f = context.factorization
    b, a = f.b[:, kept].double(), f.a[kept].double()
    return round_pivoted(context.w, b, a, context.c_in, context.c_out, columns=fmt.kind == "column-pivoted")


def _candidates(context: SiteContext, kind: str) -> list[Candidate]:
    shape = context.site.shape
    formats = [SiteFormat(kind, rank) for rank in range(ALIGNMENT, min(shape), ALIGNMENT)]
    dense = weight_bytes(shape, SiteFormat("int8"))
    formats = [fmt for fmt in formats if fmt.fits(shape) and weight_bytes(shape, fmt) < dense]
    if context.roles or not formats:
        return []
    table = context.components
    found = []
    for fmt, extra in zip(formats, _rounding(context, formats), strict=True):
        loss, score = float(table.truncation[fmt.rank]) + extra, float(table.score[fmt.rank]) + extra
        found.append(Candidate(fmt, weight_bytes(shape, fmt), loss, score))
    return found


def _rounding(context: SiteContext, formats: list[SiteFormat]) -> list[float]:
    """What rounding adds to the truncation's loss in every format; between the probes by its logarithm."""
    full = min(context.site.shape)
    probes = {min(formats, key=lambda fmt: abs(fmt.rank - share * full)).rank: share for share in PROBES}
    logs = []
    for rank in sorted(probes):
        parts = rounded(context, SiteFormat(formats[0].kind, rank))
        error = context.weight - parts.matrix()
        extra = quadratic(error, context.c_in, context.c_out) - float(context.components.truncation[rank])
        logs.append(math.log(max(extra, 0.0) + handover_loss(parts.handover, parts.weight) + LEAST))
    return [float(value) for value in np.exp(np.interp([fmt.rank for fmt in formats], sorted(probes), logs))]
