"""What other runtimes read from a bundle's folder beside the graph: ids, limits, tokenizer, chat template."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai
import pytest
import transformers
from compatibility_bundles import CONTEXT, END, PAD, int8
from compatibility_runtimes import Genai, Optimum, Ours
from export_tiny import make_checkpoint, tiny_model
from optimum.onnxruntime import ORTModelForCausalLM

from edge_svd.checkpoint import Checkpoint
from edge_svd.companions import companions
from edge_svd.export import documents, export_bundle
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.tokenizer import load_tokenizer

Made = Callable[..., Path]

TEXTS = [
    "The river near the market keeps 12 stones.",
    "  two  spaces\n\nlines\t tab 3.14",
    "Ünïcode 北京 🚀",
    "<|im_start|>user\nit's 2026<|im_end|>\n",
    "",
]

MESSAGES = [
    {"role": "system", "content": 'Be “brief” \\ "quoted".\n'},
    {"role": "user", "content": "Hi\n\n{{ x }} 北京"},
    {"role": "assistant", "content": "  padded "},
    {"role": "user", "content": "bye"},
]


def read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def architecture_of_bundle(folder: Path) -> Any:
    return Checkpoint.open(folder.parent / "checkpoint").architecture


def test_the_files_agree_on_ids_and_limits(made: Made) -> None:
    folder = made()
    genai = read(folder, "genai_config.json")
    assert genai["model"]["pad_token_id"] == PAD == read(folder, "generation_config.json")["pad_token_id"]
    assert genai["model"]["eos_token_id"] == END == read(folder, "generation_config.json")["eos_token_id"]
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == CONTEXT
    assert genai["search"]["past_present_share_buffer"] is True
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (PAD, END, "left")
    assert tokenizer.model_max_length == CONTEXT and tokenizer.model_input_names == ["input_ids", "attention_mask"]
    theirs = Genai(folder).tokenizer
    assert (theirs.pad_token_id, list(theirs.eos_token_ids)) == (PAD, [END])


def test_several_end_tokens_stop_every_runtime(made: Made, tmp_path: Path) -> None:
    """The second of two end tokens ends a text as the first does."""
    prompt = [5, 7, 40, 99, 120]
    first = Ours(made()).one(prompt, 24)
    end = next(token for token in first[4:] if first.index(token) >= 4)
    beside = {path.name: path.read_bytes() for path in (made().parent / "checkpoint" / "companions").iterdir()}
    ids = {"bos_token_id": PAD, "eos_token_id": [END, end], "pad_token_id": PAD}
    for name in ("config.json", "generation_config.json"):
        beside[name] = json.dumps(json.loads(beside[name]) | ids).encode()
    vocabulary = read(made(), "config.json")["vocab_size"]
    make_checkpoint(
        tmp_path / "c",
        tiny_model("llama", vocab_size=vocabulary, max_position_embeddings=2 * CONTEXT, **ids),
        int8,
        companions=beside,
    )
    folder = export_bundle(tmp_path / "c", tmp_path / "b", context=CONTEXT)
    expected = first[: first.index(end)]
    assert read(folder, "genai_config.json")["model"]["eos_token_id"] == [END, end]
    assert Ours(folder).one(prompt, 24) == Genai(folder).one(prompt, 24) == Optimum(folder).one(prompt, 24) == expected


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        ("<|endoftext|>", {}, 0),
        ("<|endoftext|>", {"pad_token_id": 1}, 0),
        (None, {"pad_token_id": 1}, 1),
        (None, {}, 2),
    ],
    ids=["tokenizer", "tokenizer first", "generation", "end"],
)
def test_where_the_token_for_padding_comes_from(
    own: str | None, generation: dict[str, Any], expected: int, made: Made
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(made().parent / "source")
    tokenizer.pad_token = own
    architecture = architecture_of_bundle(made())
    files = companions(
        "tiny", read(made(), "config.json") | {"pad_token_id": None}, generation, tokenizer, architecture, b""
    )
    assert json.loads(files["generation_config.json"])["pad_token_id"] == expected
    pad = json.loads(files["tokenizer_config.json"])["pad_token"]
    assert tokenizer.convert_tokens_to_ids(pad) == expected
    assert documents.pad_token_id(files["generation_config.json"], architecture) == expected
    for damaged in (b"", b"[]", b"{", b'{"pad_token_id": 9999}', b'{"pad_token_id": true}'):
        assert documents.pad_token_id(damaged, architecture) == END


def test_tokenizers_give_the_same_ids(made: Made) -> None:
    folder = made()
    ours = load_tokenizer(open_bundle(folder))
    theirs, third = Genai(folder).tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text).tolist() == third(text)["input_ids"] == ids
        assert theirs.decode(ids) == third.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    rows = theirs.encode_batch(TEXTS[:3])
    width = max(len(ours.encode(text)) for text in TEXTS[:3])
    padded = [[*ours.encode(text), *[PAD] * (width - len(ours.encode(text)))] for text in TEXTS[:3]]
    assert rows.as_numpy().tolist() == padded


LINES = """{% for message in messages %}
  {% if message['role'] == 'user' %}
<|im_start|>user
{{ message['content'] }}<|im_end|>
  {% else %}

<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

SIGNS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>\\n" + "Today: " + date_string + "\\n\\n" + system_message }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n\\n'+ message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n\\n' }}
{%- endif %}
"""

TURNS = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nHello<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MARKED = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"


@pytest.mark.parametrize("template", [LINES, SIGNS, TURNS, MARKED], ids=["lines", "signs", "turns", "marked"])
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_templates_give_the_same_text(template: str, prompt: bool, made: Made, tmp_path: Path) -> None:
    source = transformers.AutoTokenizer.from_pretrained(made().parent / "source")
    source.chat_template = template
    files = companions("tiny", {}, {}, source, architecture_of_bundle(made()), b"")
    written = files["chat_template.jinja"].decode()
    folder = Path(shutil.copytree(made(), tmp_path / "bundle"))
    (folder / "chat_template.jinja").write_bytes(files["chat_template.jinja"])
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    expected = source.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
    assert ChatTemplate(written, special).render(MESSAGES, add_generation_prompt=prompt) == expected
    theirs = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))
    assert theirs.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=prompt) == expected


def test_the_exported_template_is_the_bundles(made: Made) -> None:
    folder = made()
    theirs = Genai(folder).tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    assert theirs == ChatTemplate.from_bundle(open_bundle(folder)).render(MESSAGES)


def test_nothing_is_warned_about(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """Loading and generating say nothing, on standard error or in a log."""
    for name in ("optimum", "transformers"):
        logging.getLogger(name).propagate = True
    with caplog.at_level(logging.WARNING):
        model = ORTModelForCausalLM.from_pretrained(made(), use_cache=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(made())
        model.generate(**tokenizer(["a stone", "the river"], padding=True, return_tensors="pt"), max_new_tokens=3)
    assert not caplog.records
    code = (
        "import sys, onnxruntime_genai as og\n"
        "model = og.Model(sys.argv[1])\n"
        "generator = og.Generator(model, og.GeneratorParams(model))\n"
        "generator.append_tokens(og.Tokenizer(model).encode('a stone'))\n"
        "generator.generate_next_token()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
