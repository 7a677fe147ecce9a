"""A model with a checkpoint's matrices in it computes what the checkpoint, loaded on its own, computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import tiny_folder

from edge_svd.compress import compress
from edge_svd.loading import load
from edge_svd.models import open_model
from edge_svd.shipped import as_shipped
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 160}


def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
    """x with every `block` neighbours as int8 on a scale of their own."""
    parts = x.unflatten(-1, (-1, block))
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return (torch.round(parts / scale) * scale).flatten(-2)


@pytest.mark.parametrize(("family", "changes"), [("llama", {"tie_word_embeddings": False}), ("gpt2", GPT2)])
def test_the_model_computes_what_the_checkpoint_does(
    family: str, changes: dict[str, Any], tiny_text_file: Path, cache: Path, tmp_path: Path
) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model", family, **changes)))
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=32))
    planning = Planning("svd-llm", candidates="low-rank,int8,trellis")
    plan = run_plan(opened, statistics, run_survey(opened, statistics, planning), planning, 160_000)
    checkpoint = compress(opened, plan, statistics, tmp_path / "checkpoint")
    windows = torch.arange(2 * 32).reshape(2, 32)
    own = {name: weight.clone() for name, weight in opened.model.named_parameters()}
    dense = opened.model(input_ids=windows).logits
    with as_shipped(opened, checkpoint, plan, plan.sites):
        found = opened.model(input_ids=windows).logits
    shipped = load(checkpoint.path)
    for site in opened.sites:
        if site.type != "embedding":
            block = plan.formats[site.tied_to or site.name].inputs_a_block(site.shape[1])
            module = shipped.get_submodule(site.name)
            module.register_forward_pre_hook(lambda _, a, block=block: (rounded(a[0], block),))
    with torch.no_grad():
        expected = shipped(input_ids=windows).logits
    assert float((expected - dense).abs().max()) > 0.1
    # Only that a factored matrix is multiplied out makes a difference, which rounding of inputs can widen.
    assert float((found - expected).abs().max()) < 5e-3
    assert all(torch.equal(weight, own[name]) for name, weight in opened.model.named_parameters())
