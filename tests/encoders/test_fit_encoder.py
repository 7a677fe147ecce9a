"""`fit`, `eval` and `run` of a sentence encoder, from a folder to a proven bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import sentence_embeddings, tiny_encoder, tiny_passages, tiny_tokenizer

import edge_svd
from edge_svd.encoders.architecture import Encoder
from edge_svd.encoders.opened import encoder_family, open_encoder
from edge_svd.errors import BudgetError, InputError
from edge_svd.evaluate.cosine import evaluate_encoder
from edge_svd.files import canonical_json
from edge_svd.fit_encoder import EncoderFit, fit_encoder
from edge_svd.fit_options import resolve
from edge_svd.loading import load
from edge_svd.models import open_model
from edge_svd.opening import open_any
from edge_svd.planner.plan import Plan
from edge_svd.planner.targets import Targets
from edge_svd.report.encoder_summary import cosine_line, encoder_summary
from edge_svd.report.inspection import inspection, inspection_text
from edge_svd.runtime import Embedder, Session, open_bundle, verify
from edge_svd.runtime.commands import Conversation, embed, evaluate, is_encoder, run
from edge_svd.runtime.errors import InputError as RuntimeInputError
from edge_svd.runtime.score import ScoringSession
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZE = 110_000


def options(text: Path) -> Calibration:
    return Calibration((str(text),), windows=48, window=40)


def fitted_at(folder: Path, text: Path, out: Path, size: int, **planning: object) -> EncoderFit:
    chosen = Planning(**planning)  # type: ignore[arg-type]
    return fit_encoder(str(folder), out, Targets(size), options(text), chosen, force=False, threads=1)


@pytest.fixture(scope="module")
def fitted(
    tiny_bert: Path, passage_file: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> EncoderFit:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SVD_CACHE", str(shared_cache))
        return fitted_at(tiny_bert, passage_file, tmp_path_factory.mktemp("fit") / "bundle", SIZE)


def test_bundle_is_what_was_promised(fitted: EncoderFit) -> None:
    size = sum(file.stat().st_size for file in fitted.bundle.iterdir())
    assert size == fitted.plan.file_bytes == fitted.measured["file_bytes"] <= SIZE
    assert size >= 0.97 * SIZE
    verify(fitted.bundle)
    assert fitted.plan.source["loss"] == "1 - cosine"
    assert 0.9 < fitted.measured["cosine"] < 1 and fitted.proof.cosine > 0.99
    assert not fitted.bundle.with_name("bundle.partial").exists()
    assert json.loads(open_bundle(fitted.bundle).manifest.to_bytes())["plan"] == fitted.plan.to_json()
    assert Plan.from_json(fitted.plan.to_json(), "it") is not None
    for text in (encoder_summary(fitted), inspection_text(inspection(fitted.bundle))):
        assert "1 - cosine" in text and "KL" not in text


def test_embeddings_are_close_to_the_model_written_out(fitted: EncoderFit, tiny_bert: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    texts = tiny_passages(40)
    expected = sentence_embeddings(opened.model, tiny_tokenizer(), texts, 48, "mean").numpy()
    found = Embedder(fitted.bundle).embed(texts)
    cosines = (expected * found).sum(1)
    assert cosines.mean() == pytest.approx(fitted.measured["cosine"], abs=0.02)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_more_bytes_lose_less(fitted: EncoderFit, tiny_bert: Path, passage_file: Path, cache: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    statistics, _ = run_calibration(opened, options(passage_file))
    prices = run_survey(opened, statistics, Planning())
    losses = []
    for size in (80_000, SIZE, 170_000):
        plan = run_plan(opened, statistics, prices, Planning(), size)
        assert plan.file_bytes <= size
        losses.append(plan.kl)
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(BudgetError) as refused:
        run_plan(opened, statistics, prices, Planning(), 5_000)
    assert refused.value.smallest > 5_000


def test_same_inputs_give_the_same_bytes(
    fitted: EncoderFit, tiny_bert: Path, passage_file: Path, cache: Path, tmp_path: Path
) -> None:
    again = fitted_at(tiny_bert, passage_file, tmp_path / "again", SIZE)
    for file in fitted.bundle.iterdir():
        if file.name != "measurements.json":
            assert file.read_bytes() == (again.bundle / file.name).read_bytes(), file.name


def test_evaluation_is_the_mean_cosine_over_the_lines(
    fitted: EncoderFit, tiny_bert: Path, passage_file: Path, tiny_model: Path
) -> None:
    bundle, text = str(fitted.bundle), passage_file
    whole = {"longest": None, "count": None, "threads": 1}
    found = evaluate_encoder(bundle, text, reference=str(tiny_bert), **whole)  # type: ignore[arg-type]
    opened = open_encoder(str(tiny_bert))
    expected = sentence_embeddings(opened.model, tiny_tokenizer(), tiny_passages(), 48, "mean").numpy()
    cosines = (expected * Embedder(fitted.bundle).embed(tiny_passages())).sum(1)
    assert found.passages == 60
    assert found.cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.least == pytest.approx(cosines.min(), abs=1e-5)
    assert "60 passages" in cosine_line(found.to_json())
    with pytest.raises(InputError, match="--reference"):
        evaluate_encoder(bundle, text, reference=None, **whole)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no sentence encoder"):
        evaluate_encoder(bundle, text, reference=str(tiny_model), **whole)  # type: ignore[arg-type]


def test_what_writes_text_is_refused(fitted: EncoderFit, passage_file: Path) -> None:
    bundle = open_bundle(fitted.bundle)
    for attempt in (
        lambda: Session(bundle),
        lambda: ScoringSession(bundle),
        lambda: run(bundle, "The river"),
        lambda: Conversation(bundle),
        lambda: evaluate(bundle, passage_file),
    ):
        with pytest.raises(RuntimeInputError, match="sentence encoder"):
            attempt()
    assert is_encoder(fitted.bundle)
    vector = embed(fitted.bundle, "The river near the stone")
    assert len(vector) == 64 and sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)


def test_embedder_refuses_what_is_no_list_of_texts(fitted: EncoderFit) -> None:
    embedder = Embedder(fitted.bundle)
    assert embedder.embed([]).shape == (0, 64)
    for attempt in (
        lambda: embedder.embed("river"),  # type: ignore[arg-type]
        lambda: embedder.embed(["\ud800"]),
        lambda: embedder.embed_ids([[]]),
        lambda: embedder.embed_ids([[2] * 49]),
        lambda: embedder.embed_ids([[10_000]]),
        lambda: embedder.embed(["river"], batch=0),
    ):
        with pytest.raises(RuntimeInputError):
            attempt()
    long = embedder.embed(["river stone " * 100, "river " + "stone river " * 100])
    assert np.isfinite(long).all()


def test_options_for_decoders_are_refused(tiny_bert: Path, passage_file: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for targets, planning, said in (
        (Targets(SIZE, 10**9), Planning(), "--ram"),
        (Targets(SIZE), Planning(refine=True), "--refine"),
        (Targets(SIZE), Planning(tune_steps=5), "--tune"),
        (Targets(SIZE), Planning(allocation="first-order"), "first-order"),
    ):
        with pytest.raises(InputError, match=said):
            fit_encoder(str(tiny_bert), out, targets, options(passage_file), planning, force=False, threads=1)
    with pytest.raises(InputError, match="writes no text"):
        fit_encoder(str(tiny_bert), out, Targets(SIZE), Calibration(windows=32), Planning(), force=False, threads=1)
    assert not out.exists()


def test_an_encoder_has_its_own_defaults(tiny_bert: Path, tiny_model: Path) -> None:
    found = resolve({"model": str(tiny_bert), "size": "100kB"}, None, Path("out"))
    assert found.encoder and (found.calibration.windows, found.calibration.window) == (1024, 128)
    other = resolve({"model": str(tiny_model), "size": "100kB"}, None, Path("out"))
    assert not other.encoder and (other.calibration.windows, other.calibration.window) == (128, 512)


def test_only_encoders_are_opened_as_such(tiny_bert: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert encoder_family(str(tiny_bert)) and not encoder_family(str(tiny_model))
    for name in ("smollm2-demo", "", "./nowhere", "model.gguf", str(tmp_path)):
        assert not encoder_family(name)
    assert isinstance(open_any(str(tiny_bert)).architecture, Encoder)
    assert not isinstance(open_any(str(tiny_model)).architecture, Encoder)
    with pytest.raises(InputError, match="bert"):
        open_model(str(tiny_bert))


def test_hub_ids_are_told_apart_by_their_config(
    tiny_bert: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"owner/encoder": tiny_bert, "decoder": tiny_model}
    monkeypatch.setattr("edge_svd.encoders.opened.hub_resolves", lambda: True)
    monkeypatch.setattr(
        "edge_svd.encoders.opened._file", lambda name, _, file: folders.get(name, tiny_bert / "no") / file
    )
    assert encoder_family("owner/encoder") and not encoder_family("decoder") and not encoder_family("owner/none")
    monkeypatch.setattr("edge_svd.encoders.opened.hub_resolves", lambda: False)
    assert not encoder_family("owner/encoder")  # and it is not in the cache


def test_description_survives_json_and_refuses_the_rest(tiny_bert: Path) -> None:
    encoder = open_encoder(str(tiny_bert)).architecture
    assert Encoder.from_json(json.loads(canonical_json(encoder.to_json()))) == encoder
    assert encoder.max_position == 48
    for key, value in (
        ("family", "roberta"),
        ("num_heads", 7),
        ("hidden_size", 0),
        ("norm_eps", float("nan")),
        ("pooling", "max"),
        ("activation", "silu"),
        ("pad_token_id", -1),
        ("num_layers", True),
    ):
        with pytest.raises(InputError):
            Encoder.from_json(encoder.to_json() | {key: value})
    with pytest.raises(InputError):
        Encoder.from_json({"family": "bert"})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"modules": "Dense"}, "Dense"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "max_tokens"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "pools by"),
        ({"longest": 0}, "max_seq_length"),
        ({"config": {"hidden_act": "silu"}}, "silu"),
        ({"config": {"position_embedding_type": "relative_key"}}, "relative"),
        ({"config": {"is_decoder": True}}, "decoder"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "model")
    if "modules" in change:
        modules = json.loads((folder / "modules.json").read_text())
        modules.append({"type": f"sentence_transformers.models.{change['modules']}", "path": "2_Dense"})
        (folder / "modules.json").write_text(json.dumps(modules))
    if "pooling" in change:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(change["pooling"]))
    if "longest" in change:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": change["longest"]}))
    if "config" in change:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change["config"]))
    with pytest.raises(InputError, match=said):
        open_encoder(str(folder))


def test_a_plain_folder_means_mean_pooling_of_all_positions(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "model", "cls")
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    encoder = open_encoder(str(folder)).architecture
    assert (encoder.pooling, encoder.max_position) == ("mean", 64)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_encoder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="encoder.layer.1.output.dense.weight"):
        open_encoder(str(folder))


def test_checkpoint_and_package_load_the_same_model(
    fitted: EncoderFit, tiny_bert: Path, passage_file: Path, cache: Path, tmp_path: Path
) -> None:
    from edge_svd.compress import compress

    opened = open_encoder(str(tiny_bert))
    statistics, _ = run_calibration(opened, options(passage_file))
    made = compress(opened, replace(fitted.plan), statistics, tmp_path / "checkpoint")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        first, second = (
            model(input_ids=ids).last_hidden_state for model in (load(made.path), edge_svd.load(made.path))
        )
    assert torch.equal(first, second) and torch.isfinite(first).all()
