"""What our runtime feeds instead of a mask, against the graph on disk that works it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_session import SharedBuffer, open_session
from export_tiny import INT8, make_checkpoint, tiny_model
from test_kv_cache import rounded

from edge_svd.architectures import Architecture
from edge_svd.export import export_bundle
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.decoding_graph import decoding_graph
from edge_svd.runtime.onnx_session import cut_of
from edge_svd.runtime.schema import COLUMNS, EMBEDDED, KEYS, LAST_KEY, PADDING, PLACES
from edge_svd.runtime.session import Session

FAMILIES = ("llama", "qwen3", "gemma2", "phi3-partial", "smollm3", "gpt2", "opt")
CONTEXT = 40
TEXT = np.random.default_rng(0).integers(0, 96, 30)
PASSES = (7, 1, 1, 5, 1, 3, 1, 1, 10)
"""Tokens of each pass: shapes that stay and shapes that change."""


def exported(folder: Path, family: str) -> tuple[Path, Architecture]:
    a = make_checkpoint(folder / "checkpoint", tiny_model(family), lambda site: INT8)
    return export_bundle(folder / "checkpoint", folder / "bundle"), a


def compare(bundle: Path, a: Architecture, dtype: Any = np.float32) -> Session:
    """Logits of all passes are the same to the last bit."""
    plain = SharedBuffer(open_session(bundle, "model.onnx"), a, CONTEXT, dtype)
    session = Session(open_bundle(bundle), threads=1, context=CONTEXT)
    for again in range(2):
        start = 0
        for count in PASSES:
            tokens = TEXT[start : start + count]
            expected = plain.step(tokens[None])[0, 0]
            found = session.step(int(tokens[0])) if count == 1 else session.prefill(tokens.tolist())
            np.testing.assert_array_equal(found, expected, err_msg=f"{again}, from {start}")
            start += count
        plain.length = 0
        session.truncate()
    return session


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_the_same_to_the_last_bit(family: str, tmp_path: Path) -> None:
    bundle, a = exported(tmp_path, family)
    session = compare(bundle, a)
    rotated = any(a.layer_ropes)
    assert cut_of(session._session).spans == ((LAST_KEY, KEYS, PLACES) if rotated else (LAST_KEY, KEYS))


def test_with_an_int8_cache(tmp_path: Path) -> None:
    """Its scales come after the input that is left out."""
    bundle, a, _ = rounded(tmp_path, "llama")
    assert cut_of(compare(bundle, a, np.int8)._session).spans


def test_nothing_is_left_of_the_mask(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, "llama")
    file = (bundle / "model.onnx").read_bytes()
    graph = decoding_graph(file, bundle / "model.onnx.data", 96).graph
    for name in (PADDING, "ArgMax", "Greater"):
        assert name.encode() in file and name.encode() not in graph
    for name in (LAST_KEY, KEYS, PLACES, COLUMNS, EMBEDDED):
        assert name.encode() in graph


def test_other_graphs_get_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that has no values of those names is given what it works them out from."""
    monkeypatch.setattr("edge_svd.export.attention.KEYS", "keys_of_their_own")
    assert cut_of(compare(*exported(tmp_path, "llama"))._session).spans == ()
    for name in ("export.attention.COLUMNS", "export.decoder.EMBEDDED"):
        monkeypatch.setattr(f"edge_svd.{name}", f"{name[-8:]}_of_their_own")
    cut = cut_of(compare(*exported(tmp_path / "all", "llama"))._session)
    assert cut.rows is None and not cut.columns
