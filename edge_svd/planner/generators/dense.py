"""The whole matrix rounded row by row: `int8` and `int16` (two bytes a weight, also called fp16)."""

from __future__ import annotations

from edge_svd.formats import SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.planner.loss import quadratic, weighted_rows
from edge_svd.quantize.rows import dequantise_rows, round_rows


def _candidate(context: SiteContext, kind: str, bits: int) -> Candidate:
    fmt = SiteFormat(kind)
    if context.roles:
        loss = score = _table_loss(context, bits)
    else:
        error = context.matrix - dequantise_rows(*round_rows(context.matrix, bits))
        loss = quadratic(error, context.c_in, context.c_out)
        score = context.strategy.rounding(error, loss, context)
    return Candidate(fmt, weight_bytes(context.site.shape, fmt), loss, score)


def _table_loss(context: SiteContext, bits: int) -> float:
    """Loss of a rounded [vocabulary, hidden] table as embedding, as head, or as both when tied."""
    w = context.weight
    error = w - dequantise_rows(*round_rows(w, bits))
    loss = 0.0
    if "lookup" in context.roles:
        metric = context.statistics.c_out(context.site) * context.lookup_scale**2
        loss += weighted_rows(error, context.statistics.token_frequency(), metric)
    if "head" in context.roles:
        head = context.statistics.head_metric(context.site.shape[1])
        loss += weighted_rows(error, context.statistics.head_variance(), head)
    return loss


@GENERATORS.register("int8")
def int8(context: SiteContext) -> list[Candidate]:
    """Dense int8 rows, one byte a weight."""
    return [_candidate(context, "int8", 8)]


@GENERATORS.register("int16")
def int16(context: SiteContext) -> list[Candidate]:
    """Dense 16-bit rows, two bytes a weight."""
    return [_candidate(context, "int16", 16)]
