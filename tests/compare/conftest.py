"""For comparisons: a tiny model, its statistics with all tokens alike, a text, and a cache for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_folder import tiny_folder, tiny_text

from edge_svd.calibrate.collect import Estimator
from edge_svd.models import OpenedModel, open_model
from edge_svd.steps import Calibration, run_calibration


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text(tiny_text())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


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
