"""README's snippets for other runtimes run as they stand and print what our runtime says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compatibility_bundles import CONTEXT, END
from compatibility_runtimes import Genai, Ours
from readme_snippets import printed

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.tokenizer import load_tokenizer

QUESTION = "What is the capital of Japan?"
PROMPTS = ("The capital of Japan is", "Water boils at a temperature of", "Two, four, six,")


@pytest.fixture
def folder(made: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle where README says it is."""
    out = tmp_path / "out"
    out.symlink_to(made(exact=True))
    return out


def test_onnxruntime_genai(folder: Path) -> None:
    """Through their own streaming: a random model writes bytes that are no UTF-8, which every decoder shows its way."""
    bundle = open_bundle(folder.resolve())
    tokenizer, stream = load_tokenizer(bundle), Genai(folder).tokenizer.create_stream()
    prompt = tokenizer.encode(ChatTemplate.from_bundle(bundle).render([{"role": "user", "content": QUESTION}]))
    tokens = Ours(folder.resolve()).one(prompt, CONTEXT - len(prompt))
    assert len(tokens) > 20
    assert printed("onnxruntime_genai", folder.parent) == "".join(map(stream.decode, [*tokens, END])) + "\n"


def test_optimum(folder: Path) -> None:
    tokenizer, ours = load_tokenizer(open_bundle(folder.resolve())), Ours(folder.resolve())
    texts = []
    for text in PROMPTS:
        ids = tokenizer.encode(text)
        texts.append(tokenizer.decode([*ids, *ours.one(ids, 16)]))
    assert printed("optimum", folder.parent) == "\n".join(texts) + "\n"
