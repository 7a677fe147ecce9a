"""The int8 KV cache: its scales and its price, and when the planner takes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_svd.architectures import cache_scale
from edge_svd.compress import compress
from edge_svd.errors import BudgetError, InputError
from edge_svd.export import export_bundle
from edge_svd.export.documents import kv_cache
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.kv_cache import FILE, RoundedCache, cache_scales, changed_cache, rounded_cache, rounding
from edge_svd.planner.plan import Plan
from edge_svd.planner.targets import Targets
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.session import Session
from edge_svd.steps import Calibration, Planning, check_plan, run_calibration, run_plan, run_survey

CANDIDATES = "int8,low-rank"
Made = tuple[OpenedModel, object, object]


@pytest.fixture
def made(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    shipped = Path(__file__).parents[2] / "recipes" / "devices" / "this-machine.toml"
    # Beside a tiny model, loading the libraries would be the peak, whatever the cache.
    device = tmp_path / "device.toml"
    device.write_text(re.sub(r"process_bytes = \d+", "process_bytes = 1000", shipped.read_text()))
    opened = open_model(str(tiny_model))
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=64))
    planning = Planning(candidates=CANDIDATES, prompt_chunk=8, context=256, device=str(device))
    return opened, statistics, run_survey(opened, statistics, planning), planning


def plain(opened: OpenedModel, windows: torch.Tensor) -> dict[str, np.ndarray]:
    """Largest size of every channel of keys (behind their rotation) and values, by a cache that transformers fills."""
    found: dict[str, np.ndarray] = {}
    for ids in windows:
        with torch.no_grad():
            cache = opened.model.model(input_ids=ids[None], use_cache=True).past_key_values
        for layer in range(opened.architecture.num_layers):
            both = cache.layers[layer].keys, cache.layers[layer].values
            for part, x in zip(("key", "value"), both, strict=True):
                size = x.abs().amax((0, 2)).numpy()
                found[f"{layer} {part}"] = np.maximum(found.get(f"{layer} {part}", size), size)
    return found


def test_scales_reach_the_largest_values(made) -> None:  # type: ignore[no-untyped-def]
    opened, statistics, _, _ = made
    a, windows = opened.architecture, statistics.held_out()
    scales = cache_scales(opened.model, a, opened.rotary(), windows)
    turning = opened.rotary()["global"] * windows.shape[1] >= 2 * np.pi
    assert turning.any() and not turning.all()
    for name, largest in plain(opened, windows).items():
        layer, part = name.split()
        top = 127 * scales[cache_scale(int(layer), part)].numpy().reshape(largest.shape)
        if part == "value":
            np.testing.assert_allclose(top, largest, rtol=1e-5)
            continue
        both = np.tile(turning, 2)
        np.testing.assert_allclose(top[:, both], largest[:, both], rtol=1e-5)
        halves = top[:, ~both].reshape(len(top), 2, -1)
        np.testing.assert_allclose(halves[:, 0], halves[:, 1])
        assert (top >= largest * (1 - 1e-5)).all()


def test_the_loss_is_the_measured_divergence(made) -> None:  # type: ignore[no-untyped-def]
    opened, statistics, _, _ = made
    found = rounded_cache(opened, statistics)
    windows = statistics.held_out()[:4, : statistics.held_out().shape[1] // 2]
    total = []
    for ids in windows:
        with torch.no_grad():
            cache = changed_cache(rounding(opened.architecture, found.scales))
            p = torch.log_softmax(opened.model(input_ids=ids[None]).logits[0].double(), -1)
            q = opened.model(input_ids=ids[None], past_key_values=cache, use_cache=True).logits[0].double()
        total.append((p.exp() * (p - torch.log_softmax(q, -1))).sum(-1)[3::4])
    assert found.loss > 0
    # Log-probabilities of the dense side are kept in fp16.
    assert found.loss == pytest.approx(float(torch.cat(total).mean()), rel=0.05, abs=7e-5)
    kept = rounded_cache(opened, statistics)
    assert kept.loss == found.loss and set(kept.scales) == set(found.scales)
    (statistics.path / FILE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="delete it"):
        rounded_cache(opened, statistics)
    (statistics.path / FILE).unlink()


def test_the_planner_takes_it_where_memory_is_limited(made) -> None:  # type: ignore[no-untyped-def]
    opened, statistics, prices, planning = made

    def plan(kind: str, targets: Targets) -> Plan:
        return run_plan(opened, statistics, prices, replace(planning, kv_cache=kind), targets)

    with pytest.raises(BudgetError, match="smallest possible") as refused:
        plan("float32", Targets(None, 1000))
    ram = Targets(None, refused.value.smallest + 20_000)
    exact, narrow, chosen = (plan(kind, ram) for kind in ("float32", "int8", "auto"))
    assert (exact.kv_cache, exact.kv_cache_loss) == ("float32", 0.0)
    assert narrow.kv_cache == "int8" and narrow.kv_cache_loss == rounded_cache(opened, statistics).loss
    assert 4 * narrow.memory["KV cache"] == exact.memory["KV cache"]
    assert narrow.kl < exact.kl and chosen == narrow
    assert narrow.kl == pytest.approx(narrow.kv_cache_loss + sum(c.loss for c in narrow.sites.values()))
    assert plan("auto", Targets(10**9)).kv_cache == "float32"
    assert Plan.from_json(narrow.to_json(), "it").kv_cache == "int8"
    with pytest.raises(InputError, match="int3"):
        planning_of_int3 = replace(planning, kv_cache="int3")
        planning_of_int3.check()


def test_an_exact_cache_is_taken_where_its_loss_is_all_there_is(
    made,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    opened, statistics, prices, planning = made
    monkeypatch.setattr("edge_svd.steps.rounded_cache", lambda *_: RoundedCache({}, 5.0))
    assert run_plan(opened, statistics, prices, planning, Targets(None, 10**9)).kv_cache == "float32"


def test_what_ships(made, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    opened, statistics, prices, planning = made
    plan = run_plan(opened, statistics, prices, replace(planning, kv_cache="int8"), Targets(10**9))
    check_plan(opened, plan)
    checkpoint = compress(opened, plan, statistics, tmp_path / "checkpoint")
    assert kv_cache(checkpoint.plan) == "int8"
    bundle = open_bundle(export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", context=plan.context))
    assert bundle.file_bytes == plan.file_bytes and bundle.manifest.model.kv_dtype == "int8"
    session = Session(bundle, threads=1)
    assert all(buffer.dtype == np.int8 for buffer in session.cache.values())
    ids = statistics.held_out()[0].tolist()
    once = session.prefill(ids, chunk=64).copy()
    session.truncate()
    np.testing.assert_allclose(session.prefill(ids, chunk=7), once, atol=1e-4)
    with torch.no_grad():
        cache = changed_cache(rounding(opened.architecture, rounded_cache(opened, statistics).scales))
        dense = opened.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, -1].numpy()
    assert np.corrcoef(once, dense)[0, 1] > 0.99
