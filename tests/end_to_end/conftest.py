from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edge_svd.demo import NAME, demo_model
from edge_svd.errors import InputError

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "compatibility")]  # the helpers beside this file, and the other runtimes

from smollm2_commands import FEW, SIZE, answer  # noqa: E402


@pytest.fixture(scope="session")
def model() -> str:
    try:
        demo_model()
    except InputError as error:
        pytest.skip(f"the demonstration model cannot be fetched here: {error}")
    return NAME


@pytest.fixture(scope="session")
def fitted(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One fit for all tests; its folder has the name that README gives."""
    out = tmp_path_factory.mktemp("smollm2") / "out"
    return dict(answer("fit", model, "-o", str(out), "--size", str(SIZE), *FEW))
