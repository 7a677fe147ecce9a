"""What the price list assumes about a model's modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edge_svd.planner.survey import lookup_scale

sys.path.append(str(Path(__file__).parents[1] / "export"))

from export_tiny import FAMILIES, tiny_model  # noqa: E402


@pytest.mark.parametrize("family", list(FAMILIES))
def test_lookup_scale_is_what_the_module_does(family: str) -> None:
    """In every version of transformers, wherever it puts Gemma's multiplier."""
    module = tiny_model(family).model.embed_tokens
    ids = torch.arange(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(module(ids), module.weight[ids] * lookup_scale(module))
