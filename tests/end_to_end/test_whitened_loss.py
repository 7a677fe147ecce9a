"""What whitened methods say that a truncation loses, against the activations of the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_svd.calibrate.extras import take
from edge_svd.calibrate.statistics import ACTIVATIONS, Statistics, manifest_bytes
from edge_svd.decompose import Metrics, decompose
from edge_svd.models import open_model

TEXT = Path(__file__).parents[2] / "README.md"
SITES = ("model.layers.0.self_attn.q_proj", "model.layers.14.mlp.down_proj", "model.layers.29.self_attn.o_proj")


def test_dropped_energies_are_what_the_activations_lose(model: str, tmp_path: Path) -> None:
    opened = open_model(model)
    ids = opened.tokenizer(TEXT.read_text("utf-8"), add_special_tokens=False, verbose=False).input_ids
    windows = torch.tensor(ids[: 4 * 512]).reshape(4, 512)
    parts = (range(len(windows)), ())
    take(opened.model, opened.architecture, windows, parts, tmp_path, "float32", [ACTIVATIONS], lambda done: None)
    (tmp_path / "statistics.json").write_bytes(manifest_bytes({"estimator": {"kind": "sampled"}}, windows.numel()))
    statistics = Statistics.open(tmp_path)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in SITES}
    for name in SITES:
        module = opened.model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, a, name=name: seen[name].append(a[0].flatten(0, -2)))
    with torch.inference_mode():
        for row in windows:
            opened.model(input_ids=row[None])
    for site in (site for site in opened.sites if site.name in SITES):
        w = opened.model.get_submodule(site.name).weight.detach().double()
        x = torch.cat(seen[site.name]).double()
        for method in ("svd-llm", "svd-llm-v2"):
            found = decompose(method)(w, Metrics(statistics.moment(site)))
            for share in (0.4, 0.8):
                rank = int(share * w.shape[0] * w.shape[1] / sum(w.shape))
                lost = ((w - found.truncated(rank)) @ x.T).square().sum() / len(x)
                # What svd-llm had to add to a singular moment counts as inputs that there were none of.
                added = found.added * float((w - found.truncated(rank)).square().sum())
                assert float(lost) + added == pytest.approx(float(found.energy[rank:].sum()), rel=1e-4)
