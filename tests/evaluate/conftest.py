from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The helpers beside this file, the tiny models, and the tiny bundles with a tokenizer.
sys.path[:0] = [str(HERE), str(HERE.parent / "export"), str(HERE.parent / "compatibility")]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made(family, formats, cache)` is the folder that holds a tiny source, its checkpoint and its bundle."""
    from compatibility_bundles import tiny_bundle

    folders: dict[tuple[str, str, str], Path] = {}

    def make(family: str = "llama", formats: str = "int8", cache: str = "float32") -> Path:
        key = family, formats, cache
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("made")
            tiny_bundle(folders[key], *key, exact=False)
        return folders[key]

    return make
