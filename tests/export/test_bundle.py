"""The folder: complete, deterministic, accepted by the loader, and never half-written."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
from export_tiny import INT8, INT16, make_checkpoint, tiny_model

from edge_svd.errors import Failure, InputError
from edge_svd.export import data, export_bundle
from edge_svd.runtime.schema import Manifest, unpack_measurements

OWN = {
    "model.onnx",
    "model_scoring.onnx",
    "model.onnx.data",
    "genai_config.json",
    "edge_svd.json",
    "measurements.json",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "checkpoint"
    make_checkpoint(path, tiny_model("qwen2"), lambda site: INT16 if site.type == "o" else INT8)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_manifest(checkpoint: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    bundle = export_bundle(checkpoint, tmp_path / "out", context=64, progress=lambda *step: steps.append(step))
    files = content(bundle)
    assert set(files) == OWN | {"config.json", "tokenizer.json", "README.md"}
    assert files["config.json"] == (checkpoint / "companions" / "config.json").read_bytes()
    manifest = Manifest.from_bytes(files["edge_svd.json"])
    assert set(manifest.files) == set(files) - {"edge_svd.json", "measurements.json"}
    for name, entry in manifest.files.items():
        assert (entry.bytes, entry.sha256) == (len(files[name]), hashlib.sha256(files[name]).hexdigest())
    assert manifest.source.model == "tiny" and manifest.plan == {"note": "a test"}
    assert (manifest.model.max_context, manifest.model.num_kv_heads, manifest.model.eos_token_ids) == (64, 2, (2,))
    assert len(files["measurements.json"]) == 4096 and unpack_measurements(files["measurements.json"]) == {}
    genai = json.loads(files["genai_config.json"])
    assert genai["model"]["decoder"]["filename"] == "model.onnx" and genai["model"]["context_length"] == 64
    assert not (tmp_path / "out.partial").exists()
    assert ("weights", 1.0) in steps and [fraction for name, fraction in steps if name == "weights"] == sorted(
        fraction for name, fraction in steps if name == "weights"
    )


@pytest.mark.parametrize(("family", "kind"), [("granite", "granite"), ("olmo2", "decoder"), ("gpt2", "decoder")])
def test_genai_is_told_a_kind_that_it_knows(family: str, kind: str, tmp_path: Path) -> None:
    """Its own gpt2 has keys and values in one tensor; olmo2 and opt it does not know."""
    make_checkpoint(tmp_path / "checkpoint", tiny_model(family))
    files = content(export_bundle(tmp_path / "checkpoint", tmp_path / "out"))
    assert json.loads(files["genai_config.json"])["model"]["type"] == kind
    assert json.loads(files["edge_svd.json"])["model"]["family"] == family


def test_equal_inputs_give_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    assert content(export_bundle(checkpoint, tmp_path / "a")) == content(export_bundle(checkpoint, tmp_path / "b"))


def test_both_graphs_read_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    bundle = export_bundle(checkpoint, tmp_path / "out")
    placed = []
    for name in ("model.onnx", "model_scoring.onnx"):
        graph = onnx.load(bundle / name, load_external_data=False).graph
        external = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
        placed.append(external)
    assert placed[0] == placed[1]
    spans = sorted((int(e["offset"]), int(e["length"])) for e in placed[0].values())
    assert all(offset % 64 == 0 for offset, _ in spans)
    assert all(a + length <= b for (a, length), (b, _) in zip(spans, spans[1:], strict=False))
    assert sum(spans[-1]) == (bundle / "model.onnx.data").stat().st_size


def test_foreign_output_is_refused_and_untouched(checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"miau")
    (tmp_path / "file").write_bytes(b"x")
    for target in (foreign, tmp_path / "file"):
        for force in (False, True):
            with pytest.raises(InputError, match="not an edge-svd bundle"):
                export_bundle(checkpoint, target, force=force)
    assert content(foreign) == {"cat.jpg": b"miau"}
    (tmp_path / "link").symlink_to(foreign)
    with pytest.raises(InputError):
        export_bundle(checkpoint, tmp_path / "link", force=True)


def test_a_bundle_is_replaced_only_by_force(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "out", context=64)
    before = content(bundle)
    with pytest.raises(InputError, match="--force"):
        export_bundle(checkpoint, bundle, context=32)
    assert content(bundle) == before
    export_bundle(checkpoint, bundle, context=32, force=True)
    assert Manifest.from_bytes((bundle / "edge_svd.json").read_bytes()).model.max_context == 32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_export_do_no_harm(checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "out.partial" / "bundle"
    half.mkdir(parents=True)
    (half / "model.onnx.data").write_bytes(b"half")
    (tmp_path / "out.partial" / "checkpoint").mkdir()
    export_bundle(checkpoint, tmp_path / "out")
    assert content(tmp_path / "out") == content(export_bundle(checkpoint, tmp_path / "fresh"))
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["checkpoint"]


def test_disk_full(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = content(export_bundle(checkpoint, tmp_path / "old"))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data.os, "fsync", full)
    for name in ("new", "old"):
        with pytest.raises(Failure, match="No space left"):
            export_bundle(checkpoint, tmp_path / name, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and content(tmp_path / "old") == old


def test_bad_checkpoints_and_contexts(checkpoint: Path, tmp_path: Path) -> None:
    for context in (0, 129):
        with pytest.raises(InputError, match="between 1 and 128"):
            export_bundle(checkpoint, tmp_path / "out", context=context)
    make_checkpoint(tmp_path / "a", tiny_model("llama"), companions={"config.json": b"{}"})
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        export_bundle(tmp_path / "a", tmp_path / "out")
    make_checkpoint(tmp_path / "b", tiny_model("llama"), companions={"tokenizer.json": b"{}", "model.onnx": b""})
    with pytest.raises(InputError, match="companion model.onnx"):
        export_bundle(tmp_path / "b", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
