"""Graphs with an int8 KV cache against torch models whose keys and values are rounded the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_session import SharedBuffer, empty_cache, open_session, step
from export_tiny import frequencies, make_checkpoint, tiny_model

from edge_svd.architectures import Architecture, architecture_of
from edge_svd.export import export_bundle
from edge_svd.planner.kv_cache import cache_scales, changed_cache, rounding

TOLERANCE = 2e-3
"""Largest difference of logits of size about 2: a value next to a half is rounded up by one side and down by the other,
a step of 1/127 of the largest key."""

TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24))


def rounded(tmp_path: Path, family: str) -> tuple[Path, Architecture, Any]:
    """A bundle with an int8 cache, its architecture, and the same model in torch: tokens → logits."""
    model = tiny_model(family)
    a = architecture_of(model.config)
    rotary = {key: frequencies(model.model, key).numpy() for key in {rope for rope in a.layer_ropes if rope}}
    scales = cache_scales(model, a, rotary, torch.from_numpy(TOKENS))
    extra = {name: scale.numpy() for name, scale in scales.items()}
    make_checkpoint(tmp_path / "checkpoint", model, plan={"kv_cache": "int8"}, extra=extra)

    def logits(tokens: np.ndarray, first: int = 0) -> np.ndarray:
        """Of tokens at positions from `first` on."""
        with torch.no_grad():
            cache = changed_cache(rounding(a, scales))
            positions = torch.arange(first, first + tokens.shape[1])[None]
            found = model(torch.from_numpy(tokens), position_ids=positions, past_key_values=cache, use_cache=True)
            return found.logits.numpy()

    return export_bundle(tmp_path / "checkpoint", tmp_path / "bundle"), a, logits


@pytest.mark.parametrize("family", ("llama", "qwen3", "gemma2", "phi3-partial", "smollm3"))
def test_logits_are_those_of_rounded_keys_and_values(family: str, tmp_path: Path, exact_activations: None) -> None:
    bundle, a, logits = rounded(tmp_path, family)
    expected = logits(TOKENS)
    scoring, last = open_session(bundle), open_session(bundle, "model.onnx")
    found, _ = step(scoring, a, TOKENS, empty_cache(a, 2, dtype=np.int8))
    assert np.abs(found - expected).max() < TOLERANCE
    found, cache = step(last, a, TOKENS[:, :20], empty_cache(a, 2, dtype=np.int8))
    assert all(part.dtype == np.int8 and np.abs(part.astype(int)).max() > 30 for part in cache)
    for position in range(20, 24):
        found, cache = step(last, a, TOKENS[:, position : position + 1], cache)
        assert np.abs(found[:, 0] - expected[:, position]).max() < TOLERANCE


@pytest.mark.parametrize("side", ("left", "right"))
def test_padding(side: str, tmp_path: Path, exact_activations: None) -> None:
    """Padding on the left shifts what is rotated, which changes no logits but for how keys are rounded."""
    bundle, a, logits = rounded(tmp_path, "llama")
    tokens, mask = TOKENS.copy(), np.ones_like(TOKENS)
    where = slice(9, 24) if side == "left" else slice(0, 15)
    expected = logits(TOKENS[1:, :15], where.start)
    tokens[1], mask[1] = 0, 0
    tokens[1, where], mask[1, where] = TOKENS[1, :15], 1
    found, _ = step(open_session(bundle), a, tokens, empty_cache(a, 2, dtype=np.int8), mask)
    assert np.abs(found[1:, where] - expected).max() < TOLERANCE


def test_one_buffer_for_past_and_present(tmp_path: Path) -> None:
    bundle, a, _ = rounded(tmp_path, "llama")
    session = open_session(bundle, "model.onnx")
    shared, cache = SharedBuffer(session, a, 40, np.int8), empty_cache(a, dtype=np.int8)
    for start, stop in ((0, 7), (7, 15), *((n, n + 1) for n in range(15, 24))):
        found = shared.step(TOKENS[:1, start:stop])
        expected, cache = step(session, a, TOKENS[:1, start:stop], cache)
        assert np.abs(found - expected).max() < 1e-5
    assert any(np.abs(value.numpy()[:, :, 23]).max() > 0 for value in shared.values)
    assert all(np.abs(value.numpy()[:, :, 24:]).max() == 0 for value in shared.values)
