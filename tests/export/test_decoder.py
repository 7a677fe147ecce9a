"""Exported graphs against the torch models they stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_session import SharedBuffer, empty_cache, open_session, step
from export_tiny import FAMILIES, INT8, INT16, make_checkpoint, tiny_model, torch_logits

from edge_svd.architectures import Architecture, sites_of
from edge_svd.errors import InputError
from edge_svd.export import export_bundle
from edge_svd.export.decoder import decoder
from edge_svd.formats import BLOCK_BITS, TRELLIS_BITS, SiteFormat
from edge_svd.runtime.graph_products import graph_products

TOLERANCE = 1e-4
"""Largest difference of logits of size about 2 (Gemma: 10) with float32 activations."""

TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24))


def exported(tmp_path: Path, model: Any, choose: Any = lambda site: INT8) -> tuple[Path, Architecture]:
    architecture = make_checkpoint(tmp_path / "checkpoint", model, choose)
    return export_bundle(tmp_path / "checkpoint", tmp_path / "bundle"), architecture


def low_rank(k8: int, k16: int, k4: int = 0) -> Any:
    """4-bit components only where the matrix has the rank for all of them."""

    def choose(site: Any) -> SiteFormat:
        fmt = SiteFormat("low-rank", k8, k16, k4)
        if site.type in ("embedding", "lm_head"):
            return INT8
        return fmt if fmt.fits(site.shape) else SiteFormat("low-rank", k8, k16)

    return choose


def pivoted(side: str) -> Any:
    return lambda site: INT8 if site.type in ("embedding", "lm_head") else SiteFormat(f"{side}-pivoted", 16)


def coded(bits: int) -> Any:
    """That many bits, and the vocabulary's tables in three groups of rows."""
    table = SiteFormat(
        "table", rows=((5, 10), (bits if bits < 5 else 4, 50), (1, 36)) if bits > 1 else ((6, 95), (1, 1))
    )
    return lambda site: table if site.type in ("embedding", "lm_head") else SiteFormat("trellis", bits=bits)


def in_blocks(bits: int, zero: bool = False) -> Any:
    return lambda site: SiteFormat("blocks", bits=bits, block=32, zero=zero)


def corrected(bits: int, zero: bool) -> Any:
    fmt = SiteFormat("corrected", 16, bits=bits, block=32, zero=zero)
    return lambda site: INT8 if site.type in ("embedding", "lm_head") else fmt


def difference(left: np.ndarray, right: np.ndarray) -> float:
    assert left.shape == right.shape
    return float(np.abs(left - right).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_and_without_cache(family: str, tmp_path: Path, exact_activations: None) -> None:
    model = tiny_model(family)
    bundle, a = exported(tmp_path, model)
    expected = torch_logits(model, TOKENS)
    scoring, last = open_session(bundle), open_session(bundle, "model.onnx")

    logits, _ = step(scoring, a, TOKENS, empty_cache(a, 2))
    assert difference(logits, expected) < TOLERANCE
    logits, cache = step(last, a, TOKENS[:, :20], empty_cache(a, 2))
    assert difference(logits, expected[:, 19:20]) < TOLERANCE
    for position in range(20, 24):  # token by token, two rows at once
        logits, cache = step(last, a, TOKENS[:, position : position + 1], cache)
        assert difference(logits, expected[:, position : position + 1]) < TOLERANCE

    cache = empty_cache(a)
    for start, stop in ((0, 9), (9, 10), (10, 24)):  # a prompt in pieces
        logits, cache = step(scoring, a, TOKENS[:1, start:stop], cache)
        assert difference(logits, expected[:1, start:stop]) < TOLERANCE


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(
    "choose",
    (
        lambda site: INT16,
        low_rank(32, 0),
        low_rank(16, 16),
        low_rank(0, 32),
        low_rank(16, 0),
        low_rank(0, 0, 32),
        low_rank(16, 16, 32),
        corrected(4, False),
        corrected(2, True),
        pivoted("row"),
        pivoted("column"),
        *(coded(bits) for bits in TRELLIS_BITS),
        *(in_blocks(bits, zero) for bits in BLOCK_BITS for zero in (False, True)),
    ),
    ids=(
        "int16",
        "k8",
        "k8+k16",
        "k16",
        "k8 of 16",
        "k4",
        "k4+k8+k16",
        "corrected 4",
        "corrected 2",
        "rows",
        "columns",
        *(f"{bits} bits" for bits in TRELLIS_BITS),
        *(f"blocks {bits} {zero}" for bits in BLOCK_BITS for zero in (False, True)),
    ),
)
def test_every_format(choose: Any, tied: bool, tmp_path: Path, exact_activations: None) -> None:
    model = tiny_model("llama-bias", tie_word_embeddings=tied)
    bundle, a = exported(tmp_path, model, choose)
    expected = torch_logits(model, TOKENS)
    logits, _ = step(open_session(bundle), a, TOKENS, empty_cache(a, 2))
    assert difference(logits, expected) < TOLERANCE
    logits, _ = step(open_session(bundle, "model.onnx"), a, TOKENS, empty_cache(a, 2))
    assert difference(logits, expected[:, -1:]) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("apart", ["q", "k", "v", "gate"])
def test_matrices_of_different_kernels_are_not_fused(
    family: str, apart: str, tmp_path: Path, exact_activations: None
) -> None:
    narrow = SiteFormat("trellis", bits=4, block=16)

    def choose(site: Any) -> SiteFormat:
        if site.type in ("embedding", "lm_head"):
            return INT8
        return narrow if site.type == apart else SiteFormat("trellis", bits=5 if site.type == "up" else 6, block=32)

    model = tiny_model(family)
    bundle, a = exported(tmp_path, model, choose)
    rows = Counter(product.rows for product in graph_products((bundle / "model.onnx").read_bytes()))
    together = {"q": ("k", "v"), "k": ("q", "v"), "v": ("q", "k"), "gate": ("q", "k", "v")}[apart]
    wide = {site.type: site.shape[0] for site in sites_of(a)}
    assert rows[sum(wide[kind] for kind in together)] >= a.num_layers
    logits, _ = step(open_session(bundle), a, TOKENS, empty_cache(a, 2))
    np.testing.assert_allclose(logits, torch_logits(model, TOKENS), atol=TOLERANCE)


def test_widths_that_are_no_multiple_of_16_are_padded(tmp_path: Path, exact_activations: None) -> None:
    for choose in (
        lambda site: INT8,
        lambda site: INT16,
        low_rank(16, 16),
        pivoted("row"),
        pivoted("column"),
        coded(3),
    ):
        model = tiny_model("llama", hidden_size=40, intermediate_size=72)
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        bundle, a = exported(path, model, choose)
        logits, _ = step(open_session(bundle), a, TOKENS, empty_cache(a, 2))
        assert difference(logits, torch_logits(model, TOKENS)) < TOLERANCE


@pytest.mark.parametrize(
    "choose",
    (lambda site: INT8, lambda site: INT16, low_rank(16, 16), pivoted("row"), pivoted("column")),
    ids=("int8", "int16", "low-rank", "rows", "columns"),
)
def test_int8_activations_stay_close(choose: Any, tmp_path: Path) -> None:
    """What ships: activations rounded to 8 bits a block cost 2 to 3% of a random model's logits, not more."""
    model = tiny_model("llama")
    bundle, a = exported(tmp_path, model, choose)
    expected = torch_logits(model, TOKENS)
    logits, _ = step(open_session(bundle), a, TOKENS, empty_cache(a, 2))
    error = float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("family", ("llama", "mistral", "gemma2", "smollm3", "granite", "olmo2", "gpt2", "opt"))
@pytest.mark.parametrize("side", ("left", "right"))
def test_padded_rows_equal_unpadded_ones(family: str, side: str, tmp_path: Path, exact_activations: None) -> None:
    model = tiny_model(family)
    bundle, a = exported(tmp_path, model)
    session = open_session(bundle)
    short = TOKENS[1:, :15]
    expected = torch_logits(model, np.concatenate((short, TOKENS[1:, 15:20]), axis=1))
    tokens, mask = TOKENS.copy(), np.ones_like(TOKENS)
    where = slice(9, 24) if side == "left" else slice(0, 15)
    tokens[1], mask[1] = 0, 0
    tokens[1, where], mask[1, where] = short[0], 1
    logits, cache = step(session, a, tokens, empty_cache(a, 2), mask)
    assert difference(logits[1:, where], expected[:, :15]) < TOLERANCE
    last, _ = step(open_session(bundle, "model.onnx"), a, tokens, empty_cache(a, 2), mask)
    assert difference(last, np.stack((logits[0, -1:], expected[0, 14:15]))) < TOLERANCE
    for index in range(5):  # and goes on behind the padding, row by row at its own positions
        if side == "right" and any(a.layer_windows):
            break  # a window counts places of the buffer, and the padding would lie inside it
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        logits, cache = step(session, a, TOKENS[:, 15 + index : 16 + index], cache, mask)
        assert difference(logits[1:], expected[:, 15 + index : 16 + index]) < TOLERANCE


@pytest.mark.parametrize("family", ("gpt2", "opt"))
def test_learned_positions_are_those_given(family: str, tmp_path: Path, exact_activations: None) -> None:
    model = tiny_model(family)
    bundle, a = exported(tmp_path, model)
    positions = np.cumsum(np.random.default_rng(1).integers(1, 4, (1, 24)), axis=1)
    mask = np.ones((1, 24), np.int64)
    with torch.no_grad():
        expected = model(
            torch.from_numpy(TOKENS[:1]),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        ).logits.numpy()
    feeds = {"input_ids": TOKENS[:1], "attention_mask": mask, "position_ids": positions}
    feeds |= {
        f"past_key_values.{n}.{part}": empty_cache(a)[0] for n in range(a.num_layers) for part in ("key", "value")
    }
    logits = open_session(bundle).run(["logits"], feeds)[0]
    assert difference(logits, expected) < TOLERANCE
    assert difference(logits, torch_logits(model, TOKENS[:1])) > 0.1


@pytest.mark.parametrize("family", ("llama", "phi3", "qwen3", "gpt2"))
def test_positions_may_leave_places_out_behind_a_prompt(family: str, tmp_path: Path, exact_activations: None) -> None:
    model = tiny_model(family)
    bundle, a = exported(tmp_path, model)
    positions = np.concatenate((np.arange(12), [17, 18, 23])).astype(np.int64)[None]
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS[:1, :15]), position_ids=torch.from_numpy(positions)).logits.numpy()
    session, cache = open_session(bundle), empty_cache(a)
    names = [f"{n}.{part}" for n in range(a.num_layers) for part in ("key", "value")]
    pasts = {f"past_key_values.{name}": cache[0] for name in names}
    for start, stop in ((0, 12), (12, 14), (14, 15)):
        feeds = {
            "input_ids": TOKENS[:1, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": positions[:, start:stop],
        }
        logits, *presents = session.run(["logits", *(f"present.{name}" for name in names)], feeds | pasts)
        pasts = dict(zip(pasts, presents, strict=True))
        assert difference(logits, expected[:, start:stop]) < TOLERANCE


@pytest.mark.parametrize("family", ("llama", "gemma2", "phi3", "gpt2"))
def test_one_buffer_for_past_and_present(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    bundle, a = exported(tmp_path, model)
    session = open_session(bundle, "model.onnx")
    shared, cache = SharedBuffer(session, a, 40), empty_cache(a)
    for start, stop in ((0, 7), (7, 15), *((n, n + 1) for n in range(15, 24))):
        found = shared.step(TOKENS[:1, start:stop])
        expected, cache = step(session, a, TOKENS[:1, start:stop], cache)
        assert difference(found, expected) < 1e-5
    assert any(np.abs(value.numpy()[:, :, 23]).max() > 0 for value in shared.values)
    assert all(np.abs(value.numpy()[:, :, 24:]).max() == 0 for value in shared.values)


@pytest.mark.parametrize(("family", "operator"), [("llama", "cos_cache"), ("gpt2", "Gather"), ("opt", "Gather")])
def test_positions_beyond_the_context_are_refused(family: str, operator: str, tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "checkpoint", tiny_model(family))
    session = open_session(export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", context=20))
    step(session, a, TOKENS[:, :20], empty_cache(a, 2))
    with pytest.raises(Exception, match=operator):
        step(session, a, TOKENS[:, :21], empty_cache(a, 2))


def test_what_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a", tiny_model("llama", head_dim=24))
    formats = dict.fromkeys(("model.embed_tokens",), SiteFormat("low-rank", 16))
    with pytest.raises(InputError, match="multiples of 16"):
        decoder(a, formats, context=8, every_position=True)
    a = make_checkpoint(tmp_path / "b", tiny_model("llama"))
    with pytest.raises(InputError, match="cannot be low-rank"):
        decoder(a, formats, context=8, every_position=True)
