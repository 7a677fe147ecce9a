"""W ≈ B A at every rank worth having, with IO-SVD's loss-aware mix of 4-, 8- and 16-bit components.

The components whose rounding to int8 costs most are kept in 16 bits (arXiv 2605.15626, loss-aware remapping), and those
whose rounding costs least in 4 bits: the last ones carry so little that a coarse rounding of them is lost beside what
is cut off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edge_svd.formats import ALIGNMENT, LOW_BLOCK, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.components import ComponentTable
from edge_svd.planner.generators.context import GENERATORS, SiteContext

SIXTEEN_BIT_RANKS = (0, 16, 32, 64)
INT8_RANKS = (0, 16, 48, 96)
"""Components that stay int8 where the rest has 4 bits."""


@GENERATORS.register("low-rank")
def low_rank(context: SiteContext) -> list[Candidate]:
    """Factor pairs of 4-bit, int8 and 16-bit rank components, cheaper than the dense int8 matrix."""
    if context.roles:
        return []
    return from_tables(lambda rank: context.at(rank).components, context.site.shape)


def from_tables(table_of: Callable[[int], ComponentTable], shape: tuple[int, int]) -> list[Candidate]:
    """Candidates at every aligned rank below the break-even with dense int8, at most the matrix's own rank."""
    dense = weight_bytes(shape, SiteFormat("int8"))
    found = []
    for rank in range(ALIGNMENT, min(shape) + 1, ALIGNMENT):
        mixes = [SiteFormat("low-rank", rank - k16, k16) for k16 in SIXTEEN_BIT_RANKS if k16 <= rank]
        low = [(k8, rank - k8) for k8 in INT8_RANKS if rank > k8 and (rank - k8) % LOW_BLOCK == 0]
        mixes += [SiteFormat("low-rank", k8, k4=k4) for k8, k4 in low]
        sized = [(fmt, weight_bytes(shape, fmt)) for fmt in mixes if fmt.fits(shape)]
        sized = [(fmt, size) for fmt, size in sized if size < dense]
        if not sized:
            break
        table = table_of(rank)
        handover = table.handover(rank)
        by_cost = torch.argsort(table.rounding[:rank], descending=True, stable=True)
        fine, coarse = (torch.cumsum(costs[by_cost], 0) for costs in (table.rounding, table.coarse))
        gains = torch.sort(table.gain[:rank], descending=True).values.cumsum(0)
        for fmt, size in sized:
            saved = float(gains[fmt.k16 - 1]) if fmt.k16 else 0.0
            head = rank - fmt.k4 - 1
            extra = float((coarse - fine)[-1] - ((coarse - fine)[head] if head >= 0 else 0.0)) if fmt.k4 else 0.0
            # Rounding saved by a wider component cannot make the total smaller than what truncation alone costs.
            rounding = max(float(fine[-1]) + extra - saved, 0.0) + handover
            loss = float(table.truncation[rank]) + rounding
            found.append(Candidate(fmt, size, loss, float(table.score[rank]) + rounding))
    return found
