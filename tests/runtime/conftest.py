from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_svd.runtime.bundle import Bundle, open_bundle

# pytest's importlib mode does not put a test's folder on the path, and the tests share these helpers.
sys.path.append(str(Path(__file__).parent))

from runtime_tiny import make_weights, write_bundle  # noqa: E402


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    return make_weights()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A bundle that no test changes."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", weights)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def bundle(pristine: Path) -> Bundle:
    return open_bundle(pristine)
