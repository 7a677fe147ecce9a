"""Text to calibrate or to evaluate with that is absent, too short or unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input_tools import SIZE, WINDOWS, Made
from command_line import edge_svd
from tiny_folder import tiny_text


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("latin.txt", "é".encode("latin-1") * 5000, "UTF-8"),
        ("short.txt", b"The river", "fewer than one window"),
        ("few.txt", tiny_text(20).encode(), "lower --calibration-windows"),
        ("absent.txt", None, "does not exist"),
        ("cut.jsonl", b'{"text": "The ri', "not JSON"),
        ("nothing.txt.gz", b"no gzip", "not a complete gzip"),
    ],
)
def test_calibration_text(name: str, content: bytes | None, word: str, made: Made, out: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    for command in (("fit", made.model, "--size", SIZE), ("calibrate", made.model)):
        edge_svd(*command, "-o", out, "--calibration", file, *WINDOWS).refused(2, word, str(file))


@pytest.mark.parametrize("source", ["", "hub:", "self:0", "self:-1", "self:nan"])
def test_calibration_sources(source: str, made: Made, out: Path) -> None:
    edge_svd("calibrate", made.model, "-o", out, "--calibration", source, *WINDOWS).refused(2, repr(source))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "is empty"), (b"\xff\xfe\x00", "UTF-8"), (b"The river", "fewer than one window"), (None, "not exist")],
)
def test_evaluation_text(content: bytes | None, word: str, made: Made, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    for target in (made.bundle, made.model, made.checkpoint):
        edge_svd("eval", target, "--text", file, "--window", 64).refused(2, word)
