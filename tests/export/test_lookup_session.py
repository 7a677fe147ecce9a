"""Steps that guess what follows, against steps that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tiny import INT8, make_checkpoint, tiny_model

from edge_svd.export import export_bundle, linear
from edge_svd.formats import SiteFormat
from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.generate import generate
from edge_svd.runtime.lookup import MOST
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.session import Session

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "smollm3", "gpt2", "opt")
CLOSE = {"rtol": 0, "atol": 1e-4}
PROMPT = [5, 6, 7, 8, 9, 5, 6, 7]


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Activations as they are: rounded to integers, their last bits would count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "ACCURACY_LEVEL", 0)
        yield


def bundled(folder: Path, family: str = "llama", fmt: SiteFormat = INT8) -> Bundle:
    make_checkpoint(folder / "checkpoint", tiny_model(family), lambda site: fmt)
    return open_bundle(export_bundle(folder / "checkpoint", folder / "bundle"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundled(tmp_path_factory.mktemp("lookup"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of each pass through a graph."""
    counts: list[int] = []
    run = Session._run

    def counted(self: Session, tokens: np.ndarray[Any, Any], rows: int = 1) -> None:
        counts.append(len(tokens))
        run(self, tokens, rows)

    monkeypatch.setattr(Session, "_run", counted)
    yield counts


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_stay_the_same(family: str, tmp_path: Path, passes: list[int]) -> None:
    """What repeats itself is guessed, right or wrong."""
    bundle = bundled(tmp_path, family)
    made = []
    for lookup in (False, True):
        passes.clear()
        session = Session(bundle, threads=1, context=128, lookup=lookup)
        made.append(list(generate(session, PROMPT, max_new_tokens=120, stop=())))
        assert lookup or passes == [8] + [1] * 119
    assert made[0] == made[1]
    assert 1 < max(passes[1:]) <= 1 + MOST and len(passes) <= 120


@pytest.mark.parametrize("fmt", (INT8, SiteFormat("blocks", bits=4, block=32), SiteFormat("trellis", bits=3)))
def test_logits_whether_guesses_come_true_or_not(fmt: SiteFormat, tmp_path: Path) -> None:
    """A text that repeats itself and then goes on otherwise."""
    bundle = bundled(tmp_path, fmt=fmt)
    text = [*PROMPT, 8, 9, 5, 6, 7, 3, 8, 9, 5, 6, 7, 8, 1, 1, 1, 1, 1, 2, 5, 6, 7, 8, 9, 5, 40, 41]
    plain, looking = (Session(bundle, threads=1, context=40, lookup=lookup) for lookup in (False, True))
    scale = 0.0
    for session in (plain, looking):
        session.prefill(text[:4])
    for number, token in enumerate(text[4:], 5):
        expected = plain.step(token)
        scale = max(scale, float(expected.std()))
        np.testing.assert_allclose(looking.step(token), expected, **CLOSE)
        assert looking.position == number and looking.tokens == text[:number]
    assert scale > 0.1


def test_a_guess_that_comes_true_costs_no_pass(bundle: Bundle, passes: list[int]) -> None:
    session = Session(bundle, threads=1, context=40, lookup=True)
    session.prefill(PROMPT[:7])
    session.step(PROMPT[7])  # 5 6 7 stood before: 8, 9, 5 are guessed
    session.step(8)
    session.step(9)
    assert passes == [7, 4]
    session.step(40)  # not what was guessed
    assert passes == [7, 4, 1]


def test_the_cache_after_a_guess(bundle: Bundle) -> None:
    """Truncated, filled and slid, the session is as one that never guessed."""
    plain, looking = (Session(bundle, threads=1, context=24, lookup=lookup) for lookup in (False, True))
    for session in (plain, looking):
        session.prefill(PROMPT[:7])
        session.step(PROMPT[7])
        session.truncate(8)
    np.testing.assert_allclose(looking.prefill([30, 31, 32]), plain.prefill([30, 31, 32]), **CLOSE)
    for session in (plain, looking):
        session.truncate(5)
        session.prefill(PROMPT[5:])
    np.testing.assert_allclose(looking.step(8), plain.step(8), **CLOSE)
    for session in (plain, looking):
        session.slide()
    assert looking.tokens == plain.tokens
    np.testing.assert_allclose(looking.step(9), plain.step(9), **CLOSE)


def test_guesses_end_with_the_context(bundle: Bundle, passes: list[int]) -> None:
    session = Session(bundle, threads=1, context=10, lookup=True)
    session.prefill(PROMPT[:7])
    session.step(PROMPT[7])
    assert passes == [7, 3]
    session.step(8)
    session.step(9)
    assert session.position == 10 and passes == [7, 3]


def test_sampled_answers_stay_the_same(bundle: Bundle) -> None:
    made = [
        list(
            generate(
                Session(bundle, threads=1, context=80, lookup=lookup),
                PROMPT,
                max_new_tokens=60,
                sampler=Sampler(0.8, 0.9, seed=3),
                stop=(),
            )
        )
        for lookup in (False, True)
    ]
    assert made[0] == made[1] and len(set(made[0])) > 3


def test_reading_may_end_early(bundle: Bundle) -> None:
    """The cache holds what was said so far and nothing that was guessed."""
    session = Session(bundle, threads=1, context=80, lookup=True)
    tokens = generate(session, PROMPT, max_new_tokens=60, stop=())
    said = [next(tokens) for _ in range(30)]
    tokens.close()
    assert session.tokens == [*PROMPT, *said[:-1]]


def test_other_graphs_take_one_token_a_pass(tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that has no value of that name is run as it is."""
    monkeypatch.setattr("edge_svd.export.attention.COLUMNS", "columns_of_their_own")
    session = Session(bundled(tmp_path), threads=1, context=40, lookup=True)
    session.prefill(PROMPT[:7])
    session.step(PROMPT[7])
    assert passes == [7, 1]
