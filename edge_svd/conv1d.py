"""GPT-2's Conv1D modules hold the transpose of a matrix; everything here reads nn.Linear, which computes the same."""

from __future__ import annotations

from typing import Any

import torch


def without_conv1d(model: Any) -> Any:
    """The model itself, every Conv1D replaced by a Linear of equal weights and bias, without gradients."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Conv1D):
                setattr(parent, name, _linear(module))
    return model


def _linear(module: Any) -> torch.nn.Linear:
    inputs, outputs = module.weight.shape
    made = torch.nn.Linear(inputs, outputs, device="meta")
    made.weight = torch.nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    made.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
    return made.train(module.training)
