"""A real bundle says the same in onnxruntime-genai, in Optimum and in our runtime, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compatibility_runtimes import Genai, Optimum, Ours
from readme_snippets import printed

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.tokenizer import load_tokenizer

THREADS, COUNT = 2, 64

CHATS = [
    "What is the capital of Japan?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about a harbour in winter.",
    "List three uses of copper.",
    "What is 17 plus 25? Show your steps.",
    "Translate to French: The bakery opens at seven.",
    "Give me a Python function that reverses a string.",
    "Why do ships float although steel is heavier than water?",
    "Summarise the plot of Romeo and Juliet in one sentence.",
    "Ein Satz über das Wetter in Hamburg, bitte.",
]
TEXTS = [
    "The lighthouse keeper climbed the stairs every evening and",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, two astronauts",
    "Ingredients: 200 g flour, 3 eggs, 1/2 l milk.\nMethod:",
    "Dear Ms Alvarez,\n\nthank you for your letter of 12 March. I",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "Q: How many legs does a spider have?\nA:",
    "北京是中国的首都,",
    "Once",
    "# Notes on tides\n\n- The moon pulls on the water.\n- ",
]


@pytest.fixture(scope="module")
def folder(fitted: dict[str, Any]) -> Path:
    return Path(fitted["bundle"])


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    bundle = open_bundle(folder)
    tokenizer, template = load_tokenizer(bundle), ChatTemplate.from_bundle(bundle)
    chats = [template.render([{"role": "user", "content": text}]) for text in CHATS]
    return [tokenizer.encode(text) for text in (*chats, *TEXTS)]


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Ours]:
    yield Ours(folder, THREADS)


@pytest.fixture(scope="module")
def expected(ours: Ours, prompts: list[list[int]]) -> list[list[int]]:
    return [ours.one(prompt, COUNT) for prompt in prompts]


def test_genai_says_the_same(folder: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    genai = Genai(folder, THREADS)
    texts = [load_tokenizer(open_bundle(folder)).decode(prompt, skip_special_tokens=False) for prompt in prompts]
    assert [genai.tokenizer.encode(text).tolist() for text in texts] == prompts
    assert [genai.one(prompt, COUNT) for prompt in prompts] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(prompts) and sum(map(len, expected)) > 10 * COUNT


def test_optimum_says_the_same(folder: Path, ours: Ours, prompts: list[list[int]], expected: list[list[int]]) -> None:
    optimum = Optimum(folder, THREADS)
    assert [optimum.one(prompt, COUNT) for prompt in prompts] == expected
    few = [0, 5, 12, 17]
    for index, row in zip(few, optimum.batch([prompts[i] for i in few], 24), strict=True):
        check_batched(ours, prompts[index], expected[index][:24], row)


def check_batched(ours: Ours, prompt: list[int], alone: list[int], batched: list[int]) -> None:
    """Padding changes the order of attention's sums, and int8 activations make that larger: logits move by 0.1 (RMS),
    as they do between a prompt in one pass and in several. So a row may go another way, but only where two tokens are
    about equally likely.
    """
    if batched == alone:
        return
    place = next(i for i, (a, b) in enumerate(zip([*alone, -1], [*batched, -1], strict=False)) if a != b)
    ours.session.truncate()
    logits = ours.session.prefill([*prompt, *alone[:place]], chunk=4096)
    best = np.sort(logits)[-2:]
    assert best[1] - best[0] < 0.5


def test_readme_prints_what_our_runtime_says(folder: Path, prompts: list[list[int]], ours: Ours) -> None:
    tokenizer = load_tokenizer(open_bundle(folder))
    answer = tokenizer.decode(ours.one(prompts[0], 256 - len(prompts[0])))
    assert "Tokyo" in answer
    # Their snippets take as many threads as they like, which may turn a later token; the beginning is the same.
    assert printed("onnxruntime_genai", folder.parent)[:60] == (answer + "\n")[:60]
    lines = printed("optimum", folder.parent)
    assert "Tokyo" in lines and lines.count("The capital of Japan is") == 1
