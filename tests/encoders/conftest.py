"""Shared by the tests of encoders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT folder, mean pooling, inputs of up to 48 tokens."""
    from tiny_encoder import tiny_encoder

    return tiny_encoder(tmp_path_factory.mktemp("model") / "tiny-bert")


@pytest.fixture(scope="session")
def passage_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A passage a line."""
    from tiny_encoder import tiny_passages

    file = tmp_path_factory.mktemp("text") / "passages.txt"
    file.write_text("\n\n".join(tiny_passages()))
    return file
