"""Blocks of few bits with a low-rank correction: between two numbers of bits in memory, where blocks leave a gap."""

from __future__ import annotations

import torch

from edge_svd.formats import ALIGNMENT, BLOCK_SIZES, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.quantize.blocks import Blocked
from edge_svd.quantize.corrected import Factors, base_of, remaining_shares, round_corrected

RANKS = (ALIGNMENT, 2 * ALIGNMENT, 4 * ALIGNMENT)


@GENERATORS.register("corrected")
def corrected(context: SiteContext) -> list[Candidate]:
    """Three ranks on the blocks of 4 bits that take least memory, and on those of 2 bits that lose least."""
    shape = context.site.shape
    if context.roles:
        return []
    widest = max((block for block in BLOCK_SIZES[4] if shape[1] % block == 0), default=0)
    found = []
    for bits, block, zero in ((4, widest, False), (2, min(BLOCK_SIZES[2]), True)):
        formats = [SiteFormat("corrected", rank, bits=bits, block=block, zero=zero) for rank in RANKS] if widest else []
        formats = [fmt for fmt in formats if fmt.fits(shape)]
        if formats:
            with torch.no_grad():
                base = base_of(formats[0])
                outputs = context.outputs
                left = remaining_shares(context.weight, context.inputs, outputs.plain, base, outputs.gain)
            for fmt in formats:
                loss = float(left[fmt.k8])
                found.append(Candidate(fmt, weight_bytes(shape, fmt), loss, loss))
    return found


def rounded(context: SiteContext, fmt: SiteFormat) -> tuple[Blocked, Factors]:
    """The numbers that ship in this format."""

    def factors_of(error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = context.decomposed(error, fmt.k8)
        return found.b.cpu(), found.a.cpu()

    return round_corrected(context.weight, context.inputs, context.outputs, factors_of, fmt)
