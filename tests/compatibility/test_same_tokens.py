"""onnxruntime-genai and Optimum give the tokens of our own runtime from an unchanged folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compatibility_bundles import CACHES, CONTEXT, FORMATS
from compatibility_runtimes import Genai, Optimum, Ours
from export_tiny import FAMILIES

Made = Callable[..., Path]

_draw = np.random.default_rng(7)
PROMPTS = [_draw.integers(3, 250, length).tolist() for length in (9, 1, 14, 6)]
COUNT = 24

GUESSED = {"gemma2", "olmo2", "phi3", "phi3-partial"}
"""Families whose cache Optimum 0.1.0 takes for one of as many heads as the queries have, hidden_size / heads wide."""

WINDOWED = {"mistral", "gemma2", "gemma3"}


def attributes(family: str) -> dict[str, int]:
    """What a user of Optimum has to set where it guesses."""
    width = 32 if family == "phi3-partial" else 16
    return {"num_key_value_heads": 2, "embed_size_per_head": width} if family in GUESSED else {}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, cache: str, made: Made) -> None:
    folder = made(family, "int8", cache)
    ours, genai, optimum = Ours(folder), Genai(folder), Optimum(folder, **attributes(family))
    expected = [ours.one(prompt, COUNT) for prompt in PROMPTS]
    assert sum(map(len, expected)) > 2 * COUNT and len({tuple(tokens) for tokens in expected}) >= len(PROMPTS) - 1
    assert [genai.one(prompt, COUNT) for prompt in PROMPTS] == expected
    assert [optimum.one(prompt, COUNT) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches(family: str, cache: str, made: Made) -> None:
    folder = made(family, "int8", cache, exact=True)
    ours = Ours(folder)
    expected = [ours.one(prompt, COUNT) for prompt in PROMPTS]
    optimum = Optimum(folder, **attributes(family))
    # Padded on the left, a row is rotated further, and an int8 cache rounds its keys otherwise: as in a batch of one.
    width = max(map(len, PROMPTS))
    alone = [optimum.batch([prompt], COUNT, width)[0] for prompt in PROMPTS] if cache == "int8" else expected
    assert optimum.batch(PROMPTS, COUNT) == alone
    if family not in WINDOWED:
        assert Genai(folder).batch(PROMPTS, COUNT) == expected  # padded on the right


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("formats", FORMATS)
def test_every_kind_of_weights(formats: str, cache: str, made: Made) -> None:
    folder = made("llama", formats, cache)
    ours, genai, optimum = Ours(folder), Genai(folder), Optimum(folder)
    expected = [ours.one(prompt, COUNT) for prompt in PROMPTS]
    assert [genai.one(prompt, COUNT) for prompt in PROMPTS] == expected
    assert [optimum.one(prompt, COUNT) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", ["llama", "smollm3", *sorted(WINDOWED)])
def test_batches_of_equal_length(family: str, cache: str, made: Made) -> None:
    """As they ship, int8 activations and all: without padding a row does not depend on its neighbours.

    Where attention sees a window, onnxruntime-genai's padding, in the middle of a row, would take places in it.
    """
    folder = made(family, "int8", cache)
    prompts = [PROMPTS[0], PROMPTS[2][:9]]
    ours = Ours(folder)
    expected = [ours.one(prompt, COUNT) for prompt in prompts]
    assert Genai(folder).batch(prompts, COUNT) == expected
    assert Optimum(folder, **attributes(family)).batch(prompts, COUNT) == expected


@pytest.mark.parametrize("cache", CACHES)
def test_genai_continues_a_conversation(cache: str, made: Made) -> None:
    """Tokens appended to a cache that holds some, and the cache cut back."""
    folder = made("llama", "int8", cache)
    ours, genai = Ours(folder), Genai(folder)
    first, second = PROMPTS[0], PROMPTS[2]
    generator = genai.generator(CONTEXT, min_length=0)
    generator.append_tokens(np.array([first], np.int32))
    generator.append_tokens(np.array([second], np.int32))
    for _ in range(8):
        generator.generate_next_token()
    expected = ours.one([*first, *second], 8)
    assert generator.get_sequence(0)[len(first) + len(second) :].tolist() == expected
    generator.rewind_to(len(first))
    generator.append_tokens(np.array([second], np.int32))
    for _ in range(8):
        generator.generate_next_token()
    assert generator.get_sequence(0)[len(first) + len(second) :].tolist() == expected


@pytest.mark.parametrize("cache", CACHES)
def test_beams_of_genai_and_optimum_agree(cache: str, made: Made) -> None:
    folder = made("llama", "int8", cache)
    options = {"num_beams": 3, "length_penalty": 1.0, "early_stopping": True}
    prompts = [PROMPTS[0], PROMPTS[2][:9]]
    assert Genai(folder).batch(prompts, 12, **options) == Optimum(folder).batch(prompts, 12, **options)


@pytest.mark.parametrize("cache", CACHES)
def test_a_full_context(cache: str, made: Made) -> None:
    """The last place of the rotary tables is used, and one more is refused and not read."""
    folder = made("llama", "int8", cache)
    prompt = np.random.default_rng(1).integers(3, 250, CONTEXT - 8).tolist()
    expected = Ours(folder).one(prompt, 8)
    assert Genai(folder).one(prompt, 8) == Optimum(folder).one(prompt, 8) == expected
    with pytest.raises(Exception, match="context_length"):
        Genai(folder).one(prompt, 9)
    with pytest.raises(Exception, match="cos_cache"):
        Optimum(folder).batch([prompt], 10, eos_token_id=None)
