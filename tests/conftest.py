"""Shared fixtures: a private cache folder, and a tiny model on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode does not put a test's folder on the path, and the tests share helpers.
sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama folder, tied embeddings."""
    from tiny_folder import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text enough for a few calibration windows."""
    from tiny_folder import tiny_text

    file = tmp_path_factory.mktemp("text") / "prose.txt"
    file.write_text(tiny_text())
    return file


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the fits of a test run, so that they share a calibration."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point EDGE_SVD_CACHE at the shared folder."""
    monkeypatch.setenv("EDGE_SVD_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny products in torch are faster so, and much faster on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
