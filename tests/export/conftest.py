from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_svd.export import linear

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file


@pytest.fixture
def exact_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with float32 activations, so that a graph can be compared with torch to float32 accuracy."""
    monkeypatch.setattr(linear, "ACCURACY_LEVEL", 0)
