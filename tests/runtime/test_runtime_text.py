from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_tiny import make_tokenizer, write_manifest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.errors import InputError
from edge_svd.runtime.sampling import Sampler, nucleus
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

TOKENIZER = Tokenizer(make_tokenizer())


def byte_fallback() -> Tokenizer:
    """A SentencePiece-like tokenizer: ▁ for spaces, unknown characters as byte tokens."""
    vocabulary = {"<unk>": 0, "▁": 1, "▁a": 2, "b": 3} | {f"<0x{value:02X}>": 4 + value for value in range(256)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    strip = decoders.Strip(content=" ", left=1, right=0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    "text", ["plain", "grüße", "日本語 テスト", "👩‍👩‍👧 family", "é", "\N{REPLACEMENT CHARACTER} kept", ""]
)
def test_streaming_never_shows_half_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text.encode())
    pieces = list(TOKENIZER.stream(ids))
    assert "".join(pieces) == text
    for piece in pieces:
        assert "\N{REPLACEMENT CHARACTER}" not in piece or "\N{REPLACEMENT CHARACTER}" in text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_streaming_any_bytes_equals_decoding_them(ids: list[int]) -> None:
    assert "".join(TOKENIZER.stream(ids)) == TOKENIZER.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab é日👍", max_size=20))
def test_streaming_with_byte_fallback(text: str) -> None:
    tokenizer = byte_fallback()
    ids = [token for character in text for token in fallback_ids(character)]
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def fallback_ids(character: str) -> list[int]:
    known = {" ": [1], "b": [3]}
    return known.get(character) or [4 + byte for byte in character.encode()]


def test_text_appears_as_soon_as_it_is_certain() -> None:
    decoder = StreamDecoder(TOKENIZER)
    assert [decoder.push(token) for token in TOKENIZER.encode("aé日b")] == ["a", "", "é", "", "", "日", "b"]
    assert decoder.flush() == ""


def test_an_unfinished_character_comes_at_the_end() -> None:
    decoder = StreamDecoder(TOKENIZER)
    ids = TOKENIZER.encode("a日")[:-1]
    assert [decoder.push(token) for token in ids] == ["a", "", ""]
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"


def test_endless_invalid_bytes_do_not_pile_up() -> None:
    decoder = StreamDecoder(TOKENIZER)
    token = TOKENIZER.id_of("Ģ")
    assert token is not None
    shown = sum(len(decoder.push(token)) for _ in range(500))
    assert shown > 400


def test_special_tokens_only_on_request() -> None:
    backend = make_tokenizer()
    start = backend.token_to_id("<|start|>")
    backend.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", start)])
    tokenizer = Tokenizer.from_bytes(backend.to_str().encode())
    assert tokenizer.encode("a", special_tokens=True) == [start, *tokenizer.encode("a")]
    assert tokenizer.encode("<|start|>a") == [start, *tokenizer.encode("a")]
    assert tokenizer.decode([start, *tokenizer.encode("a")]) == "a"
    assert tokenizer.decode([start, *tokenizer.encode("a")], skip_special_tokens=False) == "<|start|>a"


def test_truncation_in_the_file_is_ignored() -> None:
    backend = make_tokenizer()
    backend.enable_truncation(3)
    backend.enable_padding(length=10)
    assert len(Tokenizer.from_bytes(backend.to_str().encode()).encode("abcdef")) == 6


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(InputError, match="surrogate"):
        TOKENIZER.encode("\ud83d")


def test_read_text(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes("é\r\nb".encode())
    packed.write_bytes(gzip.compress("é\r\nb".encode()))
    assert read_text(plain) == read_text(packed) == "é\r\nb"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"ab\xff", r"not UTF-8 \(byte 2\)"),
        ("a.txt.gz", b"plain", "not a complete gzip"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-5], "not a complete gzip"),
        ("a.txt.gz", b"", "is empty|not a complete gzip"),
        ("a.txt.gz", gzip.compress(b"\xff", mtime=0), "not UTF-8"),
        ("missing.txt", None, "does not exist"),
        ("", None, "cannot be read"),
    ],
)
def test_unreadable_text(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_text(tmp_path / name)


# Chat templates


def test_template_from_tokenizer_config(bundle: Bundle) -> None:
    text = ChatTemplate.from_bundle(bundle).render([{"role": "user", "content": "hi"}])
    assert text == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert load_tokenizer(bundle).encode(text)[0] == load_tokenizer(bundle).id_of("<|start|>")


def test_template_file_comes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}file")
    write_manifest(folder)
    assert ChatTemplate.from_bundle(open_bundle(folder)).render([]) == "<|start|><|end|>file"


def test_named_templates(folder: Path) -> None:
    config = '{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}'
    (folder / "tokenizer_config.json").write_text(config)
    write_manifest(folder)
    assert ChatTemplate.from_bundle(open_bundle(folder)).render([]) == "d"


@pytest.mark.parametrize("config", ["{}", "[]", '{"chat_template": 3}', '{"chat_template": []}'])
def test_no_template(folder: Path, config: str) -> None:
    (folder / "tokenizer_config.json").write_text(config)
    write_manifest(folder)
    with pytest.raises(InputError, match="no chat template"):
        ChatTemplate.from_bundle(open_bundle(folder))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ tojson.__globals__.os }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment.filters }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update(role='x') %}",
        "{{ 'x' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[0].missing.deeper }}",
    ],
)
def test_templates_stay_in_the_sandbox(source: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InputError, match="chat template cannot be") as caught:
        ChatTemplate(source).render(messages)
    assert "\n" not in str(caught.value)
    assert messages == [{"role": "user", "content": "hi"}]


def test_a_bare_dunder_shows_nothing() -> None:
    assert ChatTemplate("[{{ ''.__class__ }}]").render([]) == "[]"


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% endfor %}", "{% nonsense %}"])
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(InputError, match="cannot be compiled"):
        ChatTemplate(source)


def test_conveniences_of_transformers() -> None:
    render = lambda source, **values: ChatTemplate(source).render([{"content": "<é>"}], **values)  # noqa: E731
    assert render("{{ messages[0] | tojson }}") == '{"content": "<é>"}'
    assert render("{{ messages[0] | tojson(indent=1) }}") == '{\n "content": "<é>"\n}'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{% generation %}said{% endgeneration %}") == "said"
    assert render("{% if tools %}t{% else %}none{% endif %}{{ extra }}", extra=1) == "none1"
    assert render("{{ 'ab' * 2 }}{{ 2 * 3 }}") == "abab6"
    with pytest.raises(InputError, match="only user first"):
        render("{{ raise_exception('only user first') }}")


# Sampling


def test_greedy_takes_the_largest() -> None:
    assert Sampler()(np.array([0.0, 3.0, 3.0, 1.0], np.float32)) == 1


def test_sampling_has_the_right_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(temperature=1.0, seed=3)
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.125, 0.125], atol=0.015)


def test_temperature_sharpens() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))
    sampler = Sampler(temperature=0.5, seed=3)
    share = np.mean([sampler(logits) == 0 for _ in range(20_000)])
    assert abs(share - 0.36 / 0.52) < 0.015
    assert Sampler(temperature=1e-30)(logits) == 0


def test_top_p_cuts_the_tail() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.05, 0.35], np.float32))
    sampler = Sampler(temperature=1.0, top_p=0.8, seed=3)
    drawn = [sampler(logits) for _ in range(5_000)]
    assert set(drawn) == {1, 3}
    assert abs(drawn.count(1) / 5_000 - 0.5 / 0.85) < 0.03


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.9999, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_nucleus_equals_sorting_everything(top_p: float, spread: float) -> None:
    logits = np.random.default_rng(0).normal(size=5_000) * spread
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p, kind="stable")
    wanted = order[: min(int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1, len(p))]
    np.testing.assert_array_equal(nucleus(p, top_p), wanted)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_bad_sampling_settings(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Sampler(**arguments)  # type: ignore[arg-type]
