"""Models whose files are damaged, or that are of no supported kind."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from bad_input_damage import DAMAGED_MODELS
from bad_input_tools import Made, fit

HEADER = struct.pack("<4sIQQ", b"GGUF", 3, 1, 2)


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


WHOLE = (
    HEADER
    + gguf_string("general.architecture")
    + struct.pack("<I", 8)
    + gguf_string("llama")
    + gguf_string("llama.block_count")
    + struct.pack("<II", 4, 1)
    + gguf_string("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 64, 32, 0, 0)
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "cannot be read"),
        (b"GGUF", "truncated"),
        (HEADER[:-3], "truncated"),
        (WHOLE[:60], "truncated"),
        (WHOLE[:-5], "truncated"),
        (WHOLE + bytes(1000), "token_embd.weight ends after the end"),
        (b"hello" * 100, "not a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 0, 0), "version 9"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "architecture"),
    ],
)
def test_gguf_files(content: bytes, word: str, made: Made, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    fit(made, out, model=file).refused(2, word, str(file))


@pytest.mark.parametrize("damage", list(DAMAGED_MODELS))
def test_damaged_model_folders(damage: str, made: Made, out: Path, tmp_path: Path) -> None:
    change, code, word = DAMAGED_MODELS[damage]
    folder = Path(shutil.copytree(made.model, tmp_path / "model"))
    change(folder)
    fit(made, out, model=folder).refused(code, word)
