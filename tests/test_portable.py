"""Rewritten tokenizers and chat templates say what the originals say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edge_svd.portable import portable_template, portable_tokenizer

TEXTS = ["numbers 12345 67.8", "  12  3a4 5\n6", "½²٣ x7y", "a  \n\n 9 ", "it's 3's don't", "", "7", "北京1号\t 2\r\n"]

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Hi\n\n{{ x }}"},
    {"role": "assistant", "content": "  padded "},
    {"role": "user", "content": "bye"},
]

LINES = """{% for message in messages %}
{% if message['role'] == 'user' %}
<|user|>
{{ message['content'] }}</s>
  {% elif message['role'] == 'system' %}
<|system|>
{{ message['content'] }}</s>
{% else %}

<|assistant|>
{{ message['content'] }}</s>
{% endif %}
{# a note
   of two lines #}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""

TEMPLATES = {
    "lines": LINES,
    "signs": "a\n  {%- if messages -%}  b {{- messages[0].role -}} c\n{% endif %}\n\nd {# c #}\n  {%+ if messages %}"
    " e\n{% endif +%}\nf\n\n",
    "indented data": "x\n   {%+ if messages %}y{% endif %}\n  \n{% set a = 1 %}\n\n\n{{ a }}\n\n",
    "start": "  {%+ if messages %}\n    z\n  {% endif %}",
    "braces": "{{-{'a': 1}['a']-}} {% if messages -%} x {%- endif %}",
    "comment between": "{% if messages %}{# one #}\n\n{# two #}\n  {% endif %} end\n",
    "newlines in text": "{% for m in messages %}{{ '\n' + m.content + \"\\n\" }}\n{% endfor %}\n",
}


def rendered(source: str, trim: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    return environment.from_string(source).render(messages=MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_need_no_trimming(name: str) -> None:
    source = TEMPLATES[name]
    written = portable_template(source)
    assert rendered(written, True) == rendered(written, False) == rendered(source, True)
    assert portable_template(written) == written
    if name in ("lines", "comment between"):
        assert rendered(source, False) != rendered(source, True)


@pytest.mark.parametrize("source", ["{% if %", "{% raw %}{{ x }}\n{% endraw %}\nx", "no tags"])
def test_other_templates_stay(source: str) -> None:
    assert portable_template(source) == source


def trained(steps: list[Any]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def test_digits_become_a_regular_expression() -> None:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    before = trained(steps)
    written = portable_tokenizer(before.to_str().encode())
    after = Tokenizer.from_str(written.decode())
    kinds = [step["type"] for step in json.loads(written)["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Split", "Split", "ByteLevel"]
    joined = trained([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert any(before.encode(text).ids != joined.encode(text).ids for text in TEXTS)
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids
        assert after.decode(after.encode(text).ids) == text
    assert portable_tokenizer(written) == written


@pytest.mark.parametrize("steps", [[pre_tokenizers.ByteLevel()], [pre_tokenizers.Digits(individual_digits=False)]])
def test_other_tokenizers_stay(steps: list[Any]) -> None:
    data = trained(steps).to_str().encode()
    assert portable_tokenizer(data) == data
