"""The proof and the look into the session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from export_session import empty_cache, open_session, step
from export_tiny import INT8, INT16, make_checkpoint, tiny_model, torch_logits

from edge_svd.errors import InputError
from edge_svd.export import export_bundle, prove
from edge_svd.formats import SiteFormat

LOW_RANK = SiteFormat("low-rank", 16, 16)
FORMATS = (INT8, INT16, LOW_RANK, SiteFormat("row-pivoted", 16), SiteFormat("column-pivoted", 16))
WINDOWS = np.random.default_rng(3).integers(3, 96, (3, 20)).tolist()


def test_proof_against_a_plain_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    a = make_checkpoint(tmp_path / "checkpoint", model)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    tokens = np.array(WINDOWS)
    expected = torch_logits(model, tokens).astype(np.float64)
    found = step(open_session(bundle), a, tokens, empty_cache(a, 3))[0].astype(np.float64)
    p = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    q = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(-1).mean()
    monkeypatch.setattr(prove, "LOGITS_BYTES", 4 * 6 * 96 * 7)  # pieces of seven positions
    proof = prove.prove(tmp_path / "checkpoint", bundle, WINDOWS, model=model)
    assert proof.positions == 60
    assert proof.top1_agreement == pytest.approx((expected.argmax(-1) == found.argmax(-1)).mean())
    assert proof.kl_mean == pytest.approx(kl, rel=1e-3) and 1e-6 < kl < 0.02
    assert proof.max_abs_error == pytest.approx(np.abs(expected - found).max(), rel=1e-3)
    assert proof.prompt_kl_mean is None
    behind = prove.prove(tmp_path / "checkpoint", bundle, WINDOWS, prompt=11, model=model)
    rows = (p * np.log(p / q)).sum(-1)
    assert behind.positions == 27
    assert behind.kl_mean == pytest.approx(rows[:, 11:].mean(), rel=1e-3)
    assert behind.prompt_kl_mean == pytest.approx(rows[:, :11].mean(), rel=1e-3)
    assert behind.top1_agreement == pytest.approx((expected.argmax(-1) == found.argmax(-1))[:, 11:].mean())
    with pytest.raises(InputError, match="longer than its prompt"):
        prove.prove(tmp_path / "checkpoint", bundle, WINDOWS, prompt=20, model=model)


def test_proof_sees_a_wrong_bundle(tmp_path: Path) -> None:
    model = tiny_model("llama")
    make_checkpoint(tmp_path / "checkpoint", model)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    weights = bytearray((bundle / "model.onnx.data").read_bytes())
    weights[10_000:14_000] = bytes(4_000)
    (bundle / "model.onnx.data").write_bytes(weights)
    assert prove.prove(tmp_path / "checkpoint", bundle, WINDOWS, model=model).kl_mean > 0.1
    with pytest.raises(InputError, match="at least one window"):
        prove.prove(tmp_path / "checkpoint", bundle, [[]], model=model)


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.kind)
def test_the_session_holds_no_widened_weights(tmp_path: Path, tied: bool, fmt: SiteFormat) -> None:
    """In float32 only scales (a block's at most), norms and one rotary table; the integers once, and once when tied."""
    model = tiny_model("llama", tie_word_embeddings=tied, vocab_size=4096)
    embedding = INT8 if fmt.factored else fmt
    make_checkpoint(tmp_path / "checkpoint", model, lambda site: embedding if site.layer < 0 else fmt)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", context=100)
    held = prove.inspect_session(bundle)
    floats = [row for row in held if row[1] == "FLOAT"]
    planes = 2 if embedding.kind == "int16" else 1
    head_scales = 4096 * (64 // 32) * planes * 4
    assert floats[0][2] == head_scales
    tables = 100 * 8 * 4
    assert sum(size == tables for _, _, size in floats) == 2  # cos and sin, shared by both layers
    others = [size for _, _, size in floats if size not in (tables, head_scales)]
    assert max(others) <= 96 * (96 // 16) * 4
    whole = [size for _, dtype, size in held if dtype == "UINT8" and size == 4096 * 64 * planes]
    assert len(whole) == (1 if tied else 2)
    assert all(dtype in ("UINT8", "FLOAT", "BFLOAT16", "INT64", "INT32") for _, dtype, _ in held)
    stored = sum(size for _, dtype, size in held if dtype == "UINT8")
    assert stored <= (bundle / "model.onnx.data").stat().st_size
