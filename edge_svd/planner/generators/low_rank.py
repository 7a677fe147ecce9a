"""W ≈ B A at every rank worth having, with IO-SVD's loss-aware mix of 8- and 16-bit components.

The components whose rounding to int8 costs most are kept in 16 bits (arXiv 2605.15626, loss-aware remapping).
"""

from __future__ import annotations

import torch

from edge_svd.formats import ALIGNMENT, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.components import ComponentTable
from edge_svd.planner.generators.context import GENERATORS, SiteContext

SIXTEEN_BIT_RANKS = (0, 16, 32, 64)


@GENERATORS.register("low-rank")
def low_rank(context: SiteContext) -> list[Candidate]:
    """Factor pairs of int8 and 16-bit rank components, cheaper than the dense int8 matrix."""
    if context.roles:
        return []
    return list(from_table(context.components, context.site.shape))


def from_table(table: ComponentTable, shape: tuple[int, int]) -> list[Candidate]:
    """Candidates at every aligned rank below the break-even with dense int8, at most the matrix's own rank."""
    dense = weight_bytes(shape, SiteFormat("int8"))
    found = []
    for rank in range(ALIGNMENT, min(shape) + 1, ALIGNMENT):
        handover = table.handover(rank)
        gains = torch.sort(table.gain[:rank], descending=True).values.cumsum(0)
        for k16 in SIXTEEN_BIT_RANKS:
            if k16 > rank:
                break
            fmt = SiteFormat("low-rank", rank - k16, k16)
            size = weight_bytes(shape, fmt)
            if size >= dense:
                break
            saved = float(gains[k16 - 1]) if k16 else 0.0
            # Rounding saved by a wider component cannot make the total smaller than what truncation alone costs.
            rounding = max(float(table.rounding[:rank].sum()) - saved, 0.0) + handover
            loss = float(table.truncation[rank]) + rounding
            found.append(Candidate(fmt, size, loss, float(table.score[rank]) + rounding))
    return found
