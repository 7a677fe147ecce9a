"""What the runtime adds: onnxruntime rounds the inputs of every product to int8, a block of them on one scale.

A block with largest entry a gets errors of variance (a / 127)² / 12, and an error e of entry j costs ½ weight_j e².
Where all inputs of a pass share one unsigned 8-bit scale, its step is their range r over 255, and every error has
variance (r / 255)² / 12.
Equal normal numbers have E[a²] = PEAKS[block] times the second moment of one; where a single number is larger than all
others together, a is that one.
"""

from __future__ import annotations

import torch

from edge_svd.formats import ACTIVATION_BLOCKS, BLOCK_SIZES, INT8_LIMIT, NARROW_BLOCK, WHOLE_PASS

PEAKS = {16: 4.5, 32: 5.7, 64: 6.9, 128: 8.2, 256: 9.4}

WHOLE_STEPS = 255
"""Steps between the least and the largest input of a pass on one scale."""

MEASURED = 0.72
"""Measured over predicted loss of rounding every input of a model: SmolLM2 in int8 loses 0.70, 0.73, 0.74 of the
prediction in blocks of 16, 32, 64 (inputs are less even than normal ones, which the bound by the largest overrates)."""


def handover_loss(power: torch.Tensor, weight: torch.Tensor, block: int = NARROW_BLOCK) -> float:
    """Predicted KL, nats per token. power [k]: second moments in stored order; weight [k]; k a multiple of `block`."""
    blocks = power.reshape(-1, block)
    square = torch.maximum(blocks.amax(1), PEAKS[block] / block * blocks.sum(1))
    return float(0.5 / (12 * INT8_LIMIT**2) * (square * weight.reshape(-1, block).sum(1)).sum())


def input_losses(power: torch.Tensor, weight: torch.Tensor) -> dict[int, float]:
    """Inputs a block → predicted KL of rounding the inputs of a matrix, nats per token, for the blocks that divide it.

    power [n]: second moments of the inputs; weight [n]: what an error of one costs, (Wᵀ C_out W)_jj. Widths that are no
    multiple of 16 are padded with zeros. Under WHOLE_PASS: that of a scale for every pass, were the range 1.
    """
    missing = -len(power) % NARROW_BLOCK
    power, weight = (torch.nn.functional.pad(values, (0, missing)) for values in (power, weight))
    fitting = [block for block in sorted({*ACTIVATION_BLOCKS, *BLOCK_SIZES[8]}) if len(power) % block == 0]
    losses = {block: MEASURED * handover_loss(power, weight, block) for block in fitting}
    return losses | {WHOLE_PASS: 0.5 / (12 * WHOLE_STEPS**2) * float(weight.sum())}
