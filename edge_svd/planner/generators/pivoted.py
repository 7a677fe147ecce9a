"""Low rank without the k² numbers that two factors hold too many: pivot rows or pivot columns, and coefficients."""

from __future__ import annotations

from edge_svd.formats import ALIGNMENT, PIVOTED, SiteFormat, weight_bytes
from edge_svd.planner.activations import handover_loss
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.planner.loss import quadratic
from edge_svd.quantize.pivoted import Pivoted, round_pivoted

PROBE = 0.6
"""Share of the full rank at which the loss by rounding is computed, of both sides. Over the ranks it changes by a
factor of two, and is a twentieth of what truncation costs wherever these formats are worth having."""


@GENERATORS.register("pivoted")
def pivoted(context: SiteContext) -> list[Candidate]:
    """Every rank that is cheaper than the dense int8 matrix, by rows or by columns, whichever rounds better.

    By rows, some outputs are computed from the input and the others from those; by columns, all outputs come from some
    of the inputs, to which the others have been added. Both take the same bytes but for a few scales. Of a matrix that
    is not square only the shorter dimension is tried: it mostly rounds as well or better, in a third of the time.
    """
    ranks = range(ALIGNMENT, min(context.site.shape), ALIGNMENT)
    if context.roles or not ranks:
        return []
    middle = min(ranks, key=lambda rank: abs(rank - PROBE * min(context.site.shape)))
    m, n = context.site.shape
    kinds = PIVOTED if m == n else ("row-pivoted",) if m < n else ("column-pivoted",)
    tried = [kind for kind in kinds if _possible(context, kind, middle)]
    sides = {kind: _rounding(context, SiteFormat(kind, middle)) for kind in tried}
    if not sides:
        return []
    kind = min(sides, key=lambda side: sides[side])
    found = []
    for rank in ranks:
        if _possible(context, kind, rank):
            fmt, table = SiteFormat(kind, rank), context.at(rank).components
            loss, score = float(table.truncation[rank]) + sides[kind], float(table.score[rank]) + sides[kind]
            found.append(Candidate(fmt, weight_bytes(context.site.shape, fmt), loss, score))
    return found


def rounded(context: SiteContext, fmt: SiteFormat) -> Pivoted:
    """The parts that ship in this format."""
    view = context.at(fmt.rank)
    kept, f = view.components.order[: fmt.rank], view.factorization
    b, a = f.b[:, kept].double().cpu(), f.a[kept].double().cpu()
    return round_pivoted(context.w, b, a, context.damped_in, context.damped_out, columns=fmt.kind == "column-pivoted")


def _possible(context: SiteContext, kind: str, rank: int) -> bool:
    """Whether the matrix has that rank, and gains by it."""
    shape, fmt = context.site.shape, SiteFormat(kind, rank)
    return fmt.fits(shape) and weight_bytes(shape, fmt) < weight_bytes(shape, SiteFormat("int8"))


def _rounding(context: SiteContext, fmt: SiteFormat) -> float:
    """What rounding, of the numbers and of what passes between them, adds to the truncation's loss."""
    parts = rounded(context, fmt)
    total = quadratic(context.weight - parts.matrix(), context.c_in, context.c_out)
    extra = total - float(context.at(fmt.rank).components.truncation[fmt.rank])
    return max(extra, 0.0) + handover_loss(parts.handover, parts.weight)
