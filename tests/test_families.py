"""Families that are unlike Llama, all the way: a folder is fitted, and the bundle says what the checkpoint says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folder import tiny_folder

import edge_svd
from edge_svd.calibrate.run import split
from edge_svd.checkpoint import Checkpoint
from edge_svd.compress import compress
from edge_svd.errors import InputError
from edge_svd.evaluate.targets import evaluate_target
from edge_svd.export import export_bundle, linear
from edge_svd.fit import fit
from edge_svd.models import OpenedModel, open_model
from edge_svd.runtime.bundle import open_bundle, verify
from edge_svd.runtime.generate import generate
from edge_svd.runtime.score import ScoringSession
from edge_svd.runtime.session import Session
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey
from edge_svd.tune import tune

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 150_000
NEW_TOKENS = 24
FAMILIES = {
    "granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.6}
    | {"logits_scaling": 0.7},
    "olmo2": {"tie_word_embeddings": False},
    "gpt2": {"n_inner": 160},
    "opt": {"ffn_dim": 160},
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return tiny_folder(tmp_path_factory.mktemp("families") / family, family, **FAMILIES[family])


@pytest.fixture
def calibration(tiny_text_file: Path) -> Calibration:
    return Calibration((str(tiny_text_file),), windows=8, window=64)


def greedy(opened: OpenedModel, prompt: list[int]) -> list[int]:
    """What the dense model says, one whole pass a token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            ids.append(int(opened.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_fit_is_what_was_promised(folder: Path, calibration: Calibration, cache: Path, tmp_path: Path) -> None:
    found = fit(str(folder), tmp_path / "bundle", SIZE, calibration)
    size = sum(file.stat().st_size for file in found.bundle.iterdir())
    assert size == found.plan.file_bytes == found.measured["file_bytes"]
    assert 0.98 * SIZE <= size <= SIZE
    assert found.proof.positions >= 256 and found.proof.top1_agreement > 0.9
    assert 0 < found.measured["kl"] < 5 * found.plan.kl + 0.05
    verify(found.bundle)


def test_a_precise_bundle_says_what_torch_says(
    folder: Path, calibration: Calibration, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bits a weight and float32 activations: logits equal to the checkpoint's, tokens to the dense model's."""
    monkeypatch.setattr(linear, "ACCURACY_LEVEL", 0)
    opened = open_model(str(folder))
    statistics, text = run_calibration(opened, calibration)
    planning = Planning(candidates="int16", context=128)
    plan = run_plan(opened, statistics, run_survey(opened, statistics, planning), planning, 10**9)
    assert {choice.format.kind for choice in plan.sites.values()} == {"int16"}
    checkpoint = compress(opened, plan, statistics, tmp_path / "checkpoint")
    bundle = open_bundle(export_bundle(checkpoint.path, tmp_path / "bundle", context=plan.context))
    assert sum(file.stat().st_size for file in (tmp_path / "bundle").iterdir()) == plan.file_bytes

    ids = text.ids[0]
    with torch.no_grad():
        expected = edge_svd.load(checkpoint.path)(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
        dense = opened.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    logits = ScoringSession(bundle, threads=1).logits(ids[None])[0]
    spread = float(expected.std())
    assert spread > 0.3
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * spread)
    np.testing.assert_allclose(logits, dense, rtol=0, atol=5e-3 * spread)

    prompt = [int(token) for token in ids[:12]]
    said = list(generate(Session(bundle, threads=1), prompt, max_new_tokens=NEW_TOKENS, stop=()))
    assert said == greedy(opened, prompt)


@pytest.mark.parametrize("family", ["granite", "gpt2"])
def test_scales_and_norms_are_tuned(family: str, calibration: Calibration, cache: Path, tmp_path: Path) -> None:
    """Behind biases, which stay as they are."""
    opened = open_model(str(tiny_folder(tmp_path / family, family, **FAMILIES[family])))
    statistics, text = run_calibration(opened, replace(calibration, windows=32))
    planning = Planning(candidates="int8,trellis,blocks-2")
    plan = run_plan(opened, statistics, run_survey(opened, statistics, planning), planning, 116_000)
    before = compress(opened, plan, statistics, tmp_path / "checkpoint")
    kept = {name: before.tensor(name) for name in before.names}
    own, held = split(len(text.ids))
    windows = torch.from_numpy(text.ids)
    result = tune(opened, tmp_path / "checkpoint", windows[own], windows[held], steps=60)
    assert result.kept and result.after < result.before
    after = Checkpoint.open(tmp_path / "checkpoint")
    changed = {name for name, value in kept.items() if (after.tensor(name) != value).any()}
    assert f"{opened.architecture.layout.final_norm}.weight" in changed
    assert any(name.endswith(".s8") for name in changed)
    assert not any(
        name.endswith(".bias") or name == f"{opened.architecture.layout.positions}.weight" for name in changed
    )


def test_longer_contexts_take_a_longer_table_of_positions(
    folder: Path, calibration: Calibration, cache: Path, tmp_path: Path
) -> None:
    """The size of a plan and its memory know the rows: two bytes a number, as many rows as the context has."""
    opened = open_model(str(folder))
    a = opened.architecture
    statistics, _ = run_calibration(opened, calibration)
    prices = run_survey(opened, statistics, Planning())
    sizes, embedding = {}, {}
    for context in (64, 192):
        planning = Planning(candidates="int8", context=context)
        plan = run_plan(opened, statistics, prices, planning, 10**9)
        sizes[context], embedding[context] = plan.file_bytes, plan.memory["embedding"]
    grown = 2 * a.hidden_size * 128 if a.learned_positions else 0
    assert embedding[192] - embedding[64] == grown
    assert abs(sizes[192] - sizes[64] - grown) < 64  # digits of the context in the documents


def test_texts_longer_than_the_table_are_refused(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("river stone " * 400)
    if not open_model(str(folder)).architecture.learned_positions:
        evaluate_target(str(folder), text, window=300, windows=1)
        return
    with pytest.raises(InputError, match="300 tokens.*positions for 256"):
        evaluate_target(str(folder), text, window=300, windows=1)
