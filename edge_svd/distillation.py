"""The slope of distillation: how the KL divergence to the dense model changes with a compressed one's last states."""

from __future__ import annotations

from typing import Any

import torch

from edge_svd.architectures import Architecture
from edge_svd.calibrate.collect import logits_of, pull_back

BLOCK = 128
"""Positions whose logits exist at a time: the head's weights are read that many times less, for 25 MB a tensor with
49,152 tokens."""


def pull_towards(
    dense: Any, student: Any, target: torch.Tensor, hidden: torch.Tensor, architecture: Architecture, precision: str
) -> torch.Tensor:
    """∂ mean KL(dense ‖ student) / ∂ hidden, fp32 [tokens, hidden], for last hidden states `target` of the dense model
    and `hidden` of the student; logits exist for a block of positions at a time.

    Failure where a logit is not finite.
    """
    pull = torch.empty_like(hidden, dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, len(hidden), BLOCK):
            block = slice(start, start + BLOCK)
            p = torch.softmax(logits_of(dense, target[block], architecture)[0], dim=-1)
            logits, slope = logits_of(student, hidden[block].float(), architecture)
            seed = (torch.softmax(logits, dim=-1) - p) / len(hidden)
            pull[block] = pull_back(student, seed, slope, precision)
    return pull
