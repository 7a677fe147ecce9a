"""Scorers that read a context once, against one pass over every whole sequence, without a cache, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compatibility_bundles import FORMATS
from export_tiny import FAMILIES, tiny_model

from edge_svd.errors import Failure
from edge_svd.evaluate import model_scorer
from edge_svd.evaluate.model_scorer import ModelScorer
from edge_svd.evaluate.text_loss import model_logits
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.likelihood import Likelihood
from edge_svd.runtime.prefix_scorer import PrefixScorer
from edge_svd.runtime.score import ScoringSession

Made = Callable[..., Path]
Array = np.ndarray[Any, Any]

_draw = np.random.default_rng(2)
STORY = _draw.integers(3, 90, 26).tolist()
CONTEXTS = [STORY, [*STORY, 5, 6], STORY[:7], STORY[:1]]
CONTINUATIONS = [_draw.integers(3, 90, length).tolist() for length in (4, 1, 9, 1)]
ONES = [[5], [6]]

ROUNDED = 2e-3
"""Largest difference, in nats, of a sum over nine tokens: the last bits of sums, and what int8 activations make of
them, which in these tiny models is nearly always nothing."""


def plain(logits: Callable[[Array], Array], context: Sequence[int], continuation: Sequence[int]) -> Likelihood:
    whole = np.array([*context, *continuation], np.int64)
    rows = logits(whole).astype(np.float64)[len(context) - 1 : -1]
    top = rows.max(axis=1, keepdims=True)
    logs = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    total = logs[np.arange(len(continuation)), continuation].sum()
    return Likelihood(float(total), rows.argmax(axis=1).tolist() == list(continuation))


def furthest(scorer: Any, logits: Callable[[Array], Array]) -> float:
    """The largest difference in nats; what is greedy has to be the same."""
    worst = 0.0
    for context in CONTEXTS:
        said: list[int] = []
        for _ in range(3):
            said.append(int(logits(np.array([*context, *said], np.int64))[-1].argmax()))
        assert scorer.likelihoods(context, [said])[0].greedy
        for group in ([*CONTINUATIONS, said], ONES):
            found = scorer.likelihoods(context, group)
            wanted = [plain(logits, context, one) for one in group]
            assert [one.greedy for one in found] == [one.greedy for one in wanted]
            gaps = [abs(a.log_probability - b.log_probability) for a, b in zip(found, wanted, strict=True)]
            worst = max(worst, *gaps)
    return worst


def bundle_gap(folder: Path, chunk: int) -> float:
    bundle = open_bundle(folder / "bundle")
    session = ScoringSession(bundle, threads=1)
    return furthest(PrefixScorer(bundle, threads=1, chunk=chunk), lambda ids: session.logits(ids[None])[0])


@pytest.mark.parametrize("cache", ("float32", "int8"))
@pytest.mark.parametrize("family", ("llama", "gemma2", "gpt2", "mistral", "opt", "qwen3"))
def test_a_bundle(made: Made, family: str, cache: str) -> None:
    assert bundle_gap(made(family, "int8", cache), 128) < ROUNDED


def test_a_bundle_in_short_passes(made: Made) -> None:
    assert bundle_gap(made("gemma2", "int8", "int8"), 4) < ROUNDED


@pytest.mark.parametrize("formats", [name for name in FORMATS if name != "whole"])
def test_other_weights(made: Made, formats: str) -> None:
    assert bundle_gap(made("llama", formats, "float32"), 128) < ROUNDED


@pytest.mark.parametrize("formats", ("int8", "whole"))
def test_no_order_changes_a_bit(made: Made, formats: str) -> None:
    """Activations are rounded to int8, and with "whole" on one scale a pass: passes have to be the same ones."""
    scorer = PrefixScorer(open_bundle(made("llama", formats) / "bundle"), threads=1, chunk=4)
    forth = [scorer.likelihoods(context, CONTINUATIONS) for context in CONTEXTS]
    back = [scorer.likelihoods(context, CONTINUATIONS[::-1])[::-1] for context in CONTEXTS[::-1]][::-1]
    assert forth == back


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_torch_model(family: str) -> None:
    model = tiny_model(family)
    assert furthest(ModelScorer(model, None), lambda ids: model_logits(model, ids)) < 1e-4


@pytest.mark.usefixtures("one_thread")
def test_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    whole = ModelScorer(model, None).likelihoods(STORY, CONTINUATIONS)
    monkeypatch.setattr(model_scorer, "_ROWS", 9)
    assert model_scorer._batches(CONTINUATIONS) == [CONTINUATIONS[:2], CONTINUATIONS[2:3], CONTINUATIONS[3:]]
    split = ModelScorer(model, None).likelihoods(STORY, CONTINUATIONS)
    assert [one.greedy for one in split] == [one.greedy for one in whole]
    assert [one.log_probability for one in split] == pytest.approx([one.log_probability for one in whole], abs=1e-4)


def test_replaced_weights_count(one_thread: None) -> None:
    model = tiny_model("llama")
    scorer = ModelScorer(model, None)
    before = scorer.likelihoods(STORY, CONTINUATIONS)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(0.5)
    assert scorer.likelihoods(STORY, CONTINUATIONS) != before
    assert furthest(scorer, lambda ids: model_logits(model, ids)) < 1e-4
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3] = float("nan")
    with pytest.raises(Failure, match="NaN or Inf"):
        scorer.likelihoods(STORY, CONTINUATIONS)


def test_what_the_configuration_says() -> None:
    model = tiny_model("llama")
    scorer = ModelScorer(model, None)
    assert (scorer.max_context, scorer.prefix_id) == (128, 1)
    model.config.bos_token_id = None
    assert scorer.prefix_id == 2
    model.config.eos_token_id = [7, 8]
    assert scorer.prefix_id == 7
