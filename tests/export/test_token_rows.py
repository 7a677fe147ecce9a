"""The first hidden state from rows of the data file, against the graph that gathers them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from export_session import empty_cache, open_session, step
from export_tiny import INT8, INT16, make_checkpoint, tiny_model

from edge_svd.architectures import Architecture
from edge_svd.export import export_bundle
from edge_svd.formats import SiteFormat
from edge_svd.runtime import token_rows as module
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.decoding_graph import DecodingGraph, decoding_graph
from edge_svd.runtime.errors import Failure
from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.schema import EMBEDDED
from edge_svd.runtime.session import Session
from edge_svd.runtime.token_rows import TokenRows, token_rows

TOKENS = np.random.default_rng(0).integers(0, 96, (1, 24))

TABLES = {
    "int8": INT8,
    "int16": INT16,
    "2 bits": SiteFormat("blocks", bits=2, block=32),
    "4 bits": SiteFormat("blocks", bits=4, block=32, zero=True),
    "8 bits": SiteFormat("blocks", bits=8, block=32, zero=True),
    "trellis": SiteFormat("trellis", bits=3),
    "groups": SiteFormat("table", rows=((6, 10), (3, 50), (1, 36))),
}


def made(folder: Path, family: str, table: SiteFormat, **changes: Any) -> tuple[Path, Architecture]:
    def choose(site: Any) -> SiteFormat:
        return table if site.type in ("embedding", "lm_head") else INT8

    a = make_checkpoint(folder / "checkpoint", tiny_model(family, **changes), choose)
    return export_bundle(folder / "checkpoint", folder / "bundle"), a


def opened(bundle: Path) -> TokenRows:
    return TokenRows(Parts((bundle / "model.onnx").read_bytes()), bundle / "model.onnx.data")


@pytest.fixture(params=(0, module.KEPT), ids=("read", "kept"))
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tables would all be kept whole."""
    monkeypatch.setattr(module, "KEPT", request.param)


@pytest.mark.parametrize("tied", (True, False), ids=("tied", "untied"))
@pytest.mark.parametrize("table", TABLES)
def test_logits_stay_the_same_to_the_last_bit(table: str, tied: bool, tmp_path: Path, kept: None) -> None:
    bundle, a = made(tmp_path, "llama", TABLES[table], tie_word_embeddings=tied)
    compare(bundle, a)


@pytest.mark.parametrize("family", ("gemma", "granite", "gpt2", "opt", "smollm3"))
def test_families(family: str, tmp_path: Path, kept: None) -> None:
    """Multiplied embeddings, learned positions, layers without rotation."""
    compare(*made(tmp_path, family, INT8))


@pytest.mark.parametrize("table", ("int8", "groups"))
def test_padded_widths(table: str, tmp_path: Path, kept: None) -> None:
    compare(*made(tmp_path, "llama", TABLES[table], hidden_size=40))


def compare(bundle: Path, a: Architecture) -> None:
    rows = opened(bundle)
    expected, _ = step(open_session(bundle, "model.onnx"), a, TOKENS, empty_cache(a))
    session = Session(open_bundle(bundle), threads=1, context=40)
    assert session._rows is not None and rows.width == a.hidden_size
    np.testing.assert_array_equal(session.prefill(TOKENS[0].tolist()), expected[0, 0])
    assert np.array_equal(rows(TOKENS[0])[0, 5:6], rows(TOKENS[0, 5:6])[0])


def test_a_table_of_its_own_leaves_the_graph(tmp_path: Path) -> None:
    """What only the embedding reads is not there any more; what is tied is."""
    for tied in (True, False):
        bundle, _ = made(tmp_path / str(tied), "llama", TABLES["groups"], tie_word_embeddings=tied)
        file = (bundle / "model.onnx").read_bytes()
        graph = decoding_graph(file, bundle / "model.onnx.data", 96).graph
        assert (b"model.embed_tokens.order" in graph) == tied
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        assert [item.name for item in session.get_inputs()].count(EMBEDDED) == 1


def test_other_graphs_are_left_as_they_are(tmp_path: Path) -> None:
    bundle, a = made(tmp_path, "llama", INT8)
    graph, data = (bundle / "model.onnx").read_bytes(), bundle / "model.onnx.data"
    assert token_rows(Parts(graph), data) is not None
    for change in ((b"inputs_embeds", b"inputs_embedz"), (b"\x22\x03Sub", b"\x22\x03Pow")):
        assert graph.count(change[0])
        assert token_rows(Parts(graph.replace(*change)), data) is None
    assert decoding_graph(b"", data, 96) == DecodingGraph(b"")


def test_latest_single_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATEST", 3)
    rows = opened(made(tmp_path, "llama", INT8)[0])
    read: list[int] = []
    compute = rows._computed
    monkeypatch.setattr(rows, "_computed", lambda ids: read.extend(ids.tolist()) or compute(ids))
    for token in (5, 6, 7, 5, 8, 5, 6, 8):
        np.testing.assert_array_equal(rows(np.array([token])), compute(np.array([token])))
    assert read == [5, 6, 7, 8, 6]  # the one that was asked for longest ago makes room


@pytest.mark.parametrize("table", ("int8", "groups"))
def test_rows_that_are_not_there(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 0)
    bundle, _ = made(tmp_path, "llama", TABLES[table])
    rows = opened(bundle)
    for token in (-1, 96):
        with pytest.raises(IndexError):
            rows(np.array([3, token]))
    session = Session(open_bundle(bundle), threads=1, context=40)
    (bundle / "model.onnx.data").write_bytes(b"")
    with pytest.raises(Failure, match=r"position 0 of the context \(the data file ends early\)"):
        session.prefill([5])
    with pytest.raises(EOFError):
        rows(np.array([5]))
