from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "export")]  # the helpers beside this file, and the tiny models


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made(family, formats, cache, exact)` is the folder of a tiny bundle, exported once."""
    from compatibility_bundles import tiny_bundle

    folders: dict[tuple[str, str, str, bool], Path] = {}

    def make(family: str = "llama", formats: str = "int8", cache: str = "float32", exact: bool = False) -> Path:
        key = family, formats, cache, exact
        if key not in folders:
            folders[key] = tiny_bundle(tmp_path_factory.mktemp("made"), *key)
        return folders[key]

    return make
