"""Calibration keeps to one device: shown on `meta`, whose tensors have no numbers and mix with no others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from edge_svd.architectures import sites_of
from edge_svd.calibrate import collect, extras
from edge_svd.calibrate.collect import Estimator, Moments, add_gradients, add_window, inner_sites
from edge_svd.models import open_model
from tests.tiny_folder import tiny_folder

META = torch.device("meta")


@pytest.fixture
def opened(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    found = open_model(str(tiny_folder(tmp_path / "model", request.param)))
    for module in (collect, extras):
        monkeypatch.setattr(module, "finite", lambda x: x.device == META)  # on the CPU: refused
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for meta
    found.model.to(META)
    return found


@pytest.mark.parametrize("opened", ["llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("estimator", [Estimator(), Estimator(kind="top-k", k=2), Estimator(samples=2, weighted=False)])
def test_moments(opened: Any, estimator: Estimator) -> None:
    moments = Moments(sites_of(opened.architecture), device=META)
    ids = torch.zeros(12, dtype=torch.int64, device=META)
    add_window(opened.model, opened.architecture, moments, ids, estimator, torch.Generator().manual_seed(0))
    assert {found.buffer.device for found in (*moments.inputs.values(), *moments.outputs.values())} == {META}
    assert moments.head_variance.device == moments.frequency.device == META


@pytest.mark.parametrize("opened", ["llama"], indirect=True)
def test_extras(opened: Any) -> None:
    sites = sites_of(opened.architecture)
    ids = torch.zeros(1, 12, dtype=torch.int64, device=META)
    readings = extras.Readings({site.input: site for site in inner_sites(sites)}, META)
    with readings.watching(opened.model), torch.no_grad():
        opened.model(input_ids=ids)
    assert {readings.mean(kind, key).device for key in readings.readers for kind in ("in", "size")} == {META}
    seen = []
    add_gradients(opened.model, opened.architecture, sites, lambda site, slope: seen.append(slope.device), ids[0])
    assert seen == [META] * len(inner_sites(sites))
