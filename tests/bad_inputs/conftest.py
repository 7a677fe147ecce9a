"""Shared fixtures: what a fit writes, a place where nothing may be written, and a private environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import edge_svd

# pytest's importlib mode does not put a test's folder on the path, and the tests share these helpers.
sys.path.append(str(Path(__file__).parent))

from bad_input_tools import SIZE, WINDOWS, Made  # noqa: E402


@pytest.fixture(autouse=True)
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's cache nor the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def made(tiny_model: Path, tiny_text_file: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    stats, plan, checkpoint, bundle = (folder / name for name in ("stats", "plan.json", "checkpoint", "bundle"))
    model, text = str(tiny_model), str(tiny_text_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SVD_CACHE", str(shared_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        answers = {
            "calibrate": edge_svd("calibrate", model, "-o", stats, "--calibration", text, *WINDOWS, "--json").json,
            "plan": edge_svd("plan", model, "--stats", stats, "--size", SIZE, "-o", plan, "--json").json,
            "compress": edge_svd("compress", model, "--plan", plan, "--stats", stats, "-o", checkpoint, "--json").json,
            "export": edge_svd("export", checkpoint, "-o", bundle, "--json").json,
        }
    return Made(tiny_model, tiny_text_file, stats, plan, checkpoint, bundle, answers)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where the refused command was told to write: afterwards neither it nor anything beside it exists."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder / "out"
    assert list(folder.iterdir()) == []
