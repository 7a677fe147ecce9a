"""What the runtime adds: between two factors onnxruntime rounds activations to int8, sixteen on one scale.

A block with largest entry a gets errors of variance (a / 127)² / 12, and an error e of entry j costs ½ weight_j e².
Sixteen equal normal numbers have E[a²] = 4.5 times the second moment of one; where a single number is larger than all
others together, a is that one.
"""

from __future__ import annotations

import torch

from edge_svd.formats import ALIGNMENT, INT8_LIMIT

PEAK = 4.5 / ALIGNMENT


def handover_loss(power: torch.Tensor, weight: torch.Tensor) -> float:
    """Predicted KL, nats per token. power [k]: second moments in stored order; weight [k]; k a multiple of 16."""
    blocks = power.reshape(-1, ALIGNMENT)
    square = torch.maximum(blocks.amax(1), PEAK * blocks.sum(1))
    return float(0.5 / (12 * INT8_LIMIT**2) * (square * weight.reshape(-1, ALIGNMENT).sum(1)).sum())
