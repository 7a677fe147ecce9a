"""Dense blocks of 2, 4 or 8 bits, symmetric or with zero points: what onnxruntime keeps small in memory too."""

from __future__ import annotations

from functools import partial

import torch

from edge_svd.formats import BLOCK_SIZES, SiteFormat, weight_bytes
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators.context import GENERATORS, SiteContext
from edge_svd.planner.generators.trellis import table_metric
from edge_svd.quantize.blocks import predicted_loss

SAMPLED_ROWS = 64
"""Rows by which a candidate is priced, spread evenly: the search for scales is what takes the time."""

SAMPLED_TOKENS = 1024


def blocks(bits: int, context: SiteContext) -> list[Candidate]:
    """Every block size that divides the inputs, with and without zero points."""
    shape = context.site.shape
    if context.roles:
        metric = table_metric(context, columns=False)
        inputs, rows, most = metric.inputs, metric.weight / metric.inputs.factor.plain.sum(), SAMPLED_TOKENS
        out_gain = 1.0
    else:
        inputs, rows, most = context.inputs, context.outputs.plain, SAMPLED_ROWS
        out_gain = context.outputs.gain
    step = max(1, shape[0] // most)
    # What rows weigh together is exact; only how well they round is taken from the sample.
    share = float(rows.sum()) / max(float(rows[::step].sum()), 1e-300)
    found = []
    for block in BLOCK_SIZES[bits]:
        for zero in (False, True) if bits < 8 else (False,):
            fmt = SiteFormat("blocks", bits=bits, block=block, zero=zero)
            if fmt.fits(shape):
                with torch.no_grad():
                    loss = share * predicted_loss(context.weight[::step], inputs, rows[::step], fmt, out_gain)
                found.append(Candidate(fmt, weight_bytes(shape, fmt), loss, loss))
    return found


def _of(bits: int) -> partial[list[Candidate]]:
    made = partial(blocks, bits)
    made.__doc__ = f"Dense blocks of {', '.join(map(str, BLOCK_SIZES[bits]))} weights of {bits} bits each."
    return made


for _bits in BLOCK_SIZES:
    GENERATORS.register(f"blocks-{_bits}")(_of(_bits))
