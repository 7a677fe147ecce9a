"""GPT-2's Conv1D modules hold the transpose of a matrix; everything here reads nn.Linear, which computes the same."""

from __future__ import annotations

from typing import Any

import torch


def without_conv1d(model: Any, *, copy: bool = True) -> Any:
    """The model itself, every Conv1D replaced by a Linear of equal weights and bias, without gradients; weights are
    turned in place without `copy`, and do not lie row by row then."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Conv1D):
                setattr(parent, name, _linear(module, copy))
    return model


def _linear(module: Any, copy: bool) -> torch.nn.Linear:
    inputs, outputs = module.weight.shape
    made = torch.nn.Linear(inputs, outputs, device="meta")
    turned = module.weight.detach().T
    made.weight = torch.nn.Parameter(turned.contiguous() if copy else turned, requires_grad=False)
    made.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
    return made.train(module.training)
