"""The command line with a sentence encoder: one JSON object, or one sentence and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import edge_svd
from test_export_encoder import checkpoint_of

from edge_svd.encoders.opened import open_encoder
from edge_svd.export.bundle import export_bundle
from edge_svd.formats import SiteFormat


@pytest.fixture(scope="module")
def bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All in int8."""
    folder = tmp_path_factory.mktemp("encoder")
    opened = open_encoder(str(tiny_bert))
    formats = {site.name: SiteFormat("int8") for site in opened.sites}
    return export_bundle(checkpoint_of(opened, folder / "checkpoint", formats), folder / "bundle")


def test_eval_reports_the_cosine(bundle: Path, tiny_bert: Path, passage_file: Path) -> None:
    found = edge_svd(
        "eval", bundle, "--text", passage_file, "--reference", tiny_bert, "--windows", "20", "--threads", "1", "--json"
    ).json
    assert set(found) == {"cosine", "least_cosine", "loss", "passages", "tokens"}
    assert found["passages"] == 20 and 0.99 < found["cosine"] < 1
    edge_svd("eval", bundle, "--text", passage_file, "--json").refused(2, "--reference")


def test_run_prints_the_embedding(bundle: Path) -> None:
    for more in ((), ("--json",)):
        found = edge_svd("run", bundle, "--prompt", "The river near the stone", "--threads", "1", *more).json
        assert len(found["embedding"]) == 64


@pytest.mark.parametrize(
    "arguments", [("run", "--prompt", "Hello", "--chat"), ("chat",), ("bench", "--prompt-tokens", "4")]
)
def test_what_writes_text_is_refused(bundle: Path, arguments: tuple[str, ...]) -> None:
    edge_svd(arguments[0], bundle, *arguments[1:], "--json").refused(2, "sentence encoder")


def test_inspect_and_verify_know_it(bundle: Path) -> None:
    assert edge_svd("verify", bundle, "--json").json["files"] > 4
    found = edge_svd("inspect", bundle, "--json").json
    assert found["model"]["kind"] == "encoder" and found["model"]["hidden_size"] == 64


def test_fit_needs_text(tiny_bert: Path, tmp_path: Path) -> None:
    edge_svd("fit", tiny_bert, "--size", "100kB", "-o", tmp_path / "out", "--json").refused(2, "--calibration")
