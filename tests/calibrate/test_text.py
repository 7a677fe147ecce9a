"""Calibration sources become windows: shares, spreading, digests, and every bad source in one sentence."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from edge_svd.architectures import architecture_of
from edge_svd.calibrate import text as room
from edge_svd.calibrate.text import CalibrationText, Source, parse_source, shares, windows_from
from edge_svd.errors import InputError

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def opened() -> Any:
    """A model with one token a byte, so that windows can be read back as text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE(vocab={character: i for i, character in enumerate([*alphabet, "<s>", "</s>"])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    config = AutoConfig.for_model(
        "llama", vocab_size=258, bos_token_id=256, eos_token_id=257, max_position_embeddings=4096
    )
    return SimpleNamespace(
        tokenizer=tokenizer, architecture=architecture_of(config), model=None, digest="d", tokenizer_digest="t"
    )


def read(opened: Any, *specs: str, window: int = 8, count: int = 4, seed: int = 0) -> CalibrationText:
    return windows_from([parse_source(spec) for spec in specs], opened, window=window, count=count, seed=seed)


@given(st.text(st.characters(blacklist_characters=":\x00", blacklist_categories=("Cs",)), min_size=1).filter(str.strip))
def test_a_source_without_a_colon_is_itself(spec: str) -> None:
    assert parse_source(spec) == Source(spec, 1.0)


@given(
    st.sampled_from(["self", "hub:owner/name", "hub:name@config", "a/b.txt", "dir:with/colon.txt", "C:/x.txt"]),
    st.floats(min_value=1e-6, max_value=1e6),
)
def test_a_number_after_the_last_colon_is_the_weight(spec: str, weight: float) -> None:
    assert parse_source(f"{spec}:{weight!r}") == Source(spec, weight)
    assert parse_source(spec) == Source(spec, 1.0)


@pytest.mark.parametrize("text", ["self:0", "self:-1", "self:nan", "self:inf", "self:1e999", "", "hub:", " "])
def test_bad_sources_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_source(text)


def test_a_numbered_data_set_and_an_existing_file_keep_their_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_source("hub:2024") == Source("hub:2024", 1.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes:3").write_text("x")
    assert parse_source("notes:3") == Source("notes:3", 1.0)


@given(st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=8), st.integers(1, 500))
def test_shares_add_up_and_stay_within_one_of_their_quota(weights: list[float], count: int) -> None:
    counts = shares(weights, count)
    assert sum(counts) == count
    for weight, part in zip(weights, counts, strict=True):
        assert abs(part - weight * count / sum(weights)) < 1 + 1e-9


def test_equal_weights_favour_the_earlier_source() -> None:
    assert shares([1, 1, 1], 128) == [43, 43, 42]


def test_windows_are_spread_over_the_whole_text_without_overlap(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(ord("a") + i % 26) + f"{i:07d}" for i in range(100)))
    text = read(opened, str(file), count=10)
    assert text.ids.shape == (10, 8) and text.ids.dtype == np.int64
    numbers = [int(opened.tokenizer.decode(row)[1:]) for row in text.ids]
    assert len(set(numbers)) == 10 and numbers == sorted(numbers)
    assert max(np.diff(numbers)) <= 11 and numbers[0] < 10 and numbers[-1] >= 90
    assert read(opened, str(file), count=100).ids.shape == (100, 8)


def test_seed_and_text_decide_the_digest(opened: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    one.write_text("The same words again and again. " * 40)
    two.write_bytes(gzip.compress(one.read_bytes()))
    base = read(opened, str(one))
    assert base.source_digest == read(opened, str(two)).source_digest == read(opened, str(one)).source_digest
    assert base.source_digest != read(opened, str(one), count=5).source_digest
    one.write_text("Other words again and again.    " * 40)
    assert base.source_digest != read(opened, str(one)).source_digest


def test_sources_are_mixed_by_weight_and_interleaved(opened: Any, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 400)
    text = read(opened, f"{tmp_path}/a.txt:3", f"{tmp_path}/b.txt:1", count=8)
    assert text.source_of_window.count(0) == 6 and text.source_of_window.count(1) == 2
    for row, source in zip(text.ids, text.source_of_window, strict=True):
        assert opened.tokenizer.decode(row) == "ab"[source] * 8
    first = text.source_of_window[:4]
    assert first.count(1) == 1


def test_long_texts_are_thinned_evenly(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("".join(f"{i:015d}\n" for i in range(60_000)))
    text = read(opened, str(file), window=64, count=50)
    starts = sorted(int(opened.tokenizer.decode(row)[:15]) for row in text.ids)
    assert len(set(starts)) == 50
    assert read(opened, str(file), window=64, count=50).source_digest == text.source_digest


def test_prompts_go_through_the_chat_template(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    records: list[Any] = [
        {"prompt": "one"},
        {"turns": ["two", "three"]},
        {"text": "plain four"},
        {"messages": [{"role": "user", "content": "five"}, {"role": "assistant", "content": "six"}]},
    ]
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    expected = "[user] one\n[user] two\n[user] three\nplain four</s>[user] five\n[assistant] six\n"
    text = read(opened, str(file), window=len(expected) - 3, count=1)
    assert opened.tokenizer.decode(text.ids[0]) == expected


def test_bad_sources_are_one_sentence(opened: Any, tmp_path: Path) -> None:
    def refused(data: bytes | None, match: str, name: str = "x.txt", **options: int) -> None:
        file = tmp_path / name
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(InputError, match=match) as caught:
            read(opened, str(file), **options)
        assert "\n" not in str(caught.value)

    refused(None, "does not exist", "missing.txt")
    refused(b"", "empty")
    refused(b" \n\t\n", "empty")
    refused(b"abc\xff\xfedef", r"UTF-8 \(byte 3\)")
    refused(b"abcdefg", "7 tokens, fewer than one window of 8")
    refused(b"abcdefgh" * 3, "3 windows of 8 tokens and 4 .*--calibration-windows")
    refused(gzip.compress(b"abcdefgh" * 40)[:-9], "not a complete gzip", "x.txt.gz")
    refused(b"not gzip", "not a complete gzip", "y.txt.gz")
    refused(b'{"prompt": "a"}\n{"prompt": 3}\n', "Line 2 .*prompt", "x.jsonl")
    refused(b"[1]\n", "Line 1", "x.jsonl")
    refused(b"{\n", "Line 1 .*JSON", "x.jsonl")
    refused(b"abcdefgh" * 9, "longer than the model's context", window=5000)
    refused(b"abcdefgh" * 9, "at least", window=1)
    refused(b"abcdefgh" * 9, "at least", count=0)
    with pytest.raises(InputError, match="at least one source"):
        windows_from([], opened, window=8, count=1, seed=0)


def test_hub_data_sets_are_streamed_and_need_their_package(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read(opened, "hub:owner/name")
    monkeypatch.setattr("edge_svd.calibrate.sources.hub_resolves", lambda: True)
    asked: list[Any] = []

    def load_dataset(name: str, configuration: str | None, streaming: bool) -> Any:
        asked.append((name, configuration, streaming))
        return {"test": [], "train": [{"text": "abcdefgh" * 100}] * 1000}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    text = read(opened, "hub:owner/name@small:2")
    assert asked == [("owner/name", "small", True)] and text.ids.shape == (4, 8)
    nothing = SimpleNamespace(load_dataset=lambda *_, **__: {"train": [{"label": 1}]})
    monkeypatch.setitem(sys.modules, "datasets", nothing)
    with pytest.raises(InputError, match="no field with text"):
        read(opened, "hub:owner/name")

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(InputError, match="owner/name.*no route"):
        read(opened, "hub:owner/name")
    monkeypatch.setattr("edge_svd.calibrate.sources.hub_resolves", lambda: False)
    with pytest.raises(InputError, match="owner/name.*out of reach"):
        read(opened, "hub:owner/name")


def test_text_by_the_model_is_written_once(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_svd.calibrate import generate

    calls = []

    def write_windows(*_: Any, window: int, count: int, seed: int, progress: Any) -> Any:
        calls.append(seed)
        return np.random.default_rng(seed).integers(0, 258, (count, window))

    monkeypatch.setattr(generate, "write_windows", write_windows)

    def written(seed: int = 0, model: Any = opened) -> str:
        options = {"window": 8, "count": 4, "seed": seed, "cache": tmp_path / "text"}
        return windows_from([Source(room.SELF)], model, **options).source_digest

    first = written()
    assert written() == first and calls == [0]
    assert written(seed=1) != first and calls == [0, 1]
    other = SimpleNamespace(**{**vars(opened), "digest": "another"})
    written(model=other)
    assert calls == [0, 1, 0]
    for file in (tmp_path / "text").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert written() == first and len(calls) == 4


def test_windows_longer_than_the_context_are_refused_for_self_too(opened: Any) -> None:
    short = SimpleNamespace(**{**vars(opened), "architecture": replace(opened.architecture, max_position=16)})
    with pytest.raises(InputError, match="context of 16"):
        windows_from([Source("self")], short, window=32, count=1, seed=0)
