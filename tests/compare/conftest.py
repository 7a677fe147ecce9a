"""For comparisons: a tiny model, its statistics with all tokens alike, a text, and a cache for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_svd.calibrate.collect import Estimator
from edge_svd.models import OpenedModel, open_model
from edge_svd.steps import Calibration, run_calibration


@pytest.fixture(scope="module")
def text(tiny_text_file: Path) -> Path:
    return tiny_text_file


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def opened(folder: Path) -> OpenedModel:
    return open_model(str(folder))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGE_SVD_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def statistics(opened: OpenedModel, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = Calibration((str(text),), 8, 32, estimator=Estimator(weighted=False))
    return run_calibration(opened, settings, tmp_path_factory.mktemp("s") / "statistics")[0]
