"""Files of items: every form, and one sentence with file and line for whatever is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from edge_svd.runtime.errors import InputError
from edge_svd.runtime.task_file import TaskItem, read_items, strided

GOOD: dict[str, Any] = {"id": 7, "context": "Q: why?\nA:", "choices": [" because", " not"], "gold": 1, "half": "dev"}
PARTIAL: dict[str, Any] = {
    "id": "w",
    "context": "",
    "choices": ["a b", "a c"],
    "contexts": ["a b", "a c"],
    "continuation": " so.",
    "gold": 0,
}


def written(path: Path, *lines: Any) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ("items.jsonl", "items.jsonl.gz"))
def test_every_form(tmp_path: Path, name: str) -> None:
    # U+2028 is white space inside a text and no end of a line of JSONL.
    path = written(
        tmp_path / name,
        GOOD,
        "\n",
        PARTIAL,
        GOOD | {"labels": [0, 1]},
        '{"id":1,"context":"\u2028","choices":["x"],"gold":0}\r\n',
    )
    assert read_items(path) == (
        TaskItem(f"item '7' (line 1 of {path})", ("Q: why?\nA:",) * 2, (" because", " not"), 1),
        TaskItem(f"item 'w' (line 3 of {path})", ("a b", "a c"), (" so.", " so."), 0),
        TaskItem(f"item '7' (line 4 of {path})", ("Q: why?\nA:",) * 2, (" because", " not"), 1, (False, True)),
        TaskItem(f"item '1' (line 5 of {path})", ("\u2028",), ("x",), 0),
    )


@pytest.mark.parametrize("field", ("id", "context", "choices", "gold"))
def test_a_missing_field(tmp_path: Path, field: str) -> None:
    path = written(tmp_path / "f.jsonl", GOOD, {key: value for key, value in GOOD.items() if key != field})
    with pytest.raises(InputError, match=rf"^Line 2 of the task file .*f\.jsonl lacks the field '{field}'\.$"):
        read_items(path)


@pytest.mark.parametrize("field", ("contexts", "continuation"))
def test_half_of_a_partial_item(tmp_path: Path, field: str) -> None:
    path = written(tmp_path / "f.jsonl", {key: value for key, value in PARTIAL.items() if key != field})
    with pytest.raises(InputError, match=f"Line 1 .* lacks the field '{field}'"):
        read_items(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"id": 1, "id": 2}', "the key 'id' twice"),
        ('{"id": NaN}', "NaN"),
        ('{"id": 1e999}', "not finite"),
        ('{"id": "\\ud800"}', "surrogate"),
        (GOOD | {"id": None}, "'id' that is neither"),
        (GOOD | {"id": True}, "'id' that is neither"),
        (GOOD | {"context": 3}, "'context' that is no text"),
        (GOOD | {"choices": " a"}, "'choices' that are no list of texts"),
        (GOOD | {"choices": []}, "'choices' that are no list of texts"),
        (GOOD | {"choices": [" a", 3]}, "'choices' that are no list of texts"),
        (GOOD | {"choices": [" a", " "]}, "a choice without any text"),
        (GOOD | {"choices": [" a", ""]}, "a choice without any text"),
        (PARTIAL | {"continuation": ""}, "a choice without any text"),
        (GOOD | {"gold": 2}, "the gold 2, which is none of its choices 0 to 1"),
        (GOOD | {"gold": -1}, "the gold -1"),
        (GOOD | {"gold": True}, "the gold True"),
        (GOOD | {"gold": 1.0}, "the gold 1.0"),
        (GOOD | {"gold": "1"}, "the gold 1"),
        (GOOD | {"labels": [1]}, "'labels' that are not 2 zeros and ones"),
        (GOOD | {"labels": [1, 2]}, "'labels' that are not 2 zeros and ones"),
        (GOOD | {"labels": [1, True]}, "'labels' that are not 2 zeros and ones"),
        (GOOD | {"labels": [1, 1]}, "'labels' that are all the same"),
    ],
)
def test_what_is_wrong_with_a_line(tmp_path: Path, line: Any, words: str) -> None:
    path = written(tmp_path / "f.jsonl", GOOD, "\n", line if isinstance(line, dict) else f"{line}\n")
    with pytest.raises(InputError) as caught:
        read_items(path)
    message = str(caught.value)
    assert message.startswith(f"Line 3 of the task file {path} ") and words in message and "\n" not in message


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            read_items(path)

    refused(tmp_path / "none.jsonl", r"task file .*none\.jsonl does not exist")
    refused(tmp_path, "cannot be read")
    refused(written(tmp_path / "empty.jsonl"), "is empty")
    refused(written(tmp_path / "blank.jsonl", "\n \n"), "is empty")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    refused(tmp_path / "latin.jsonl", "is not UTF-8")
    whole = written(tmp_path / "cut.jsonl.gz", GOOD).read_bytes()
    for damaged in (whole[:-9], b"plain", bytes(whole[:12]) + b"\xff" + whole[13:]):
        (tmp_path / "cut.jsonl.gz").write_bytes(damaged)
        refused(tmp_path / "cut.jsonl.gz", "is not a complete gzip file")


def test_a_limit_takes_an_even_stride(tmp_path: Path) -> None:
    items = read_items(written(tmp_path / "f.jsonl", *({**GOOD, "id": n} for n in range(10))))
    assert strided(items, None) == strided(items, 10) == strided(items, 99) == items
    assert strided(items, 4) == (items[0], items[2], items[5], items[7])
    assert strided(items, 1) == items[:1]
    with pytest.raises(InputError, match="at least 1 item"):
        strided(items, 0)
