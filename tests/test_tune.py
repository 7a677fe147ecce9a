"""Distillation of stored scales: what is written is what was measured, it helps, and it takes no bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_svd.calibrate.run import split
from edge_svd.checkpoint import Checkpoint
from edge_svd.compress import compress
from edge_svd.errors import InputError
from edge_svd.fit import fit
from edge_svd.loading import load
from edge_svd.models import open_model
from edge_svd.report.fit_summary import fit_summary
from edge_svd.steps import Calibration, Planning, check_plan, run_calibration, run_plan, run_survey, steps_of
from edge_svd.tune import tune

SIZE = 120_000
TIGHT = 109_000
"""Where so much is lost that tuning helps on every processor."""


def divergence(dense: torch.nn.Module, other: torch.nn.Module, windows: torch.Tensor) -> float:
    with torch.no_grad():
        p, q = (torch.log_softmax(model(input_ids=windows).logits.double(), -1) for model in (dense, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("candidates", ["int8,blocks-2,trellis", "low-rank,pivoted", "blocks-4"])
def test_scales_are_trained_and_written(
    candidates: str, tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path
) -> None:
    opened = open_model(str(tiny_model))
    statistics, text = run_calibration(opened, Calibration((str(tiny_text_file),), windows=24, window=64))
    planning = Planning(candidates=candidates)
    plan = run_plan(opened, statistics, run_survey(opened, statistics, planning), planning, SIZE)
    compress(opened, plan, statistics, tmp_path / "checkpoint")
    before = Checkpoint.open(tmp_path / "checkpoint")
    kept = {name: before.tensor(name) for name in before.names}
    own, held = split(len(text.ids))
    windows = torch.from_numpy(text.ids)
    start = divergence(opened.model, load(tmp_path / "checkpoint"), windows[own])
    result = tune(opened, tmp_path / "checkpoint", windows[own], windows[held], steps=60)
    assert result.kept and result.after < result.before
    assert divergence(opened.model, load(tmp_path / "checkpoint"), windows[own]) < 0.9 * start
    after = Checkpoint.open(tmp_path / "checkpoint")
    assert after.names == before.names
    changed = {name.rpartition(".")[2] for name, tensor in kept.items() if (after.tensor(name) != tensor).any()}
    assert changed >= {"weight"} | ({"u8"} if "blocks" in candidates else set())
    assert changed & {"s4", "s8", "s16"}
    for name, tensor in kept.items():
        new = after.tensor(name)
        assert new.shape == tensor.shape and new.dtype == tensor.dtype
        changes = name.endswith((".s4", ".s8", ".s16", ".u8", "norm.weight")) and "embed" not in name
        assert changes or (new == tensor).all(), name


def test_what_does_not_help_is_not_kept(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path) -> None:
    opened = open_model(str(tiny_model))
    statistics, text = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=64))
    planning = Planning(candidates="int16")
    plan = run_plan(opened, statistics, run_survey(opened, statistics, planning), planning, 10**9)
    made = compress(opened, plan, statistics, tmp_path / "checkpoint")
    kept = {name: made.tensor(name) for name in made.names}
    windows = torch.from_numpy(text.ids)
    # Trained on noise, judged on text.
    noise = torch.randint(0, opened.architecture.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    result = tune(opened, tmp_path / "checkpoint", noise, windows, steps=5)
    assert not result.kept
    assert all((Checkpoint.open(tmp_path / "checkpoint").tensor(name) == value).all() for name, value in kept.items())


@pytest.mark.slow
def test_fit_with_tuning_is_repeatable(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path) -> None:
    calibration = Calibration((str(tiny_text_file),), windows=24, window=64)
    made = [fit(str(tiny_model), tmp_path / name, TIGHT, calibration, Planning(tune_steps=40)) for name in "ab"]
    data = [(result.bundle / "model.onnx.data").read_bytes() for result in made]
    plain = fit(str(tiny_model), tmp_path / "c", TIGHT, calibration)
    assert data[0] == data[1] and data[0] != (plain.bundle / "model.onnx.data").read_bytes()
    assert made[0].plan.tune_steps == 40 and made[0].measured["file_bytes"] == made[0].plan.file_bytes <= TIGHT
    tuned = made[0].tuned
    assert tuned is not None and plain.tuned is None
    assert made[0].to_json()["tuned"] == {"before": tuned.before, "after": tuned.after, "kept": tuned.kept}
    assert f"tuned     KL {tuned.before:.4f} before, {tuned.after:.4f} after" in fit_summary(made[0])
    with pytest.raises(InputError, match="40 steps of tuning"):
        check_plan(open_model(str(tiny_model)), made[0].plan)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_must_be_a_positive_number(minutes: float) -> None:
    with pytest.raises(InputError, match="positive number of minutes"):
        steps_of(minutes)
