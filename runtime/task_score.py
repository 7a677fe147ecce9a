"""Accuracy on multiple-choice items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.likelihood import Likelihood, Pair, PairError, Scorer, encode_pair, pair_likelihoods
from edge_svd.runtime.task_file import TaskItem


@dataclass(frozen=True)
class TaskScore:
    """Shares from 0 to 1 over `n` items, with their standard errors, as lm-eval computes them.

    Attributes:
        acc: how often the right choice is the likeliest one (the first of equals); of items with one choice, how often
            the model would say it, greedily; of items with labels, the mean share of probability on true choices.
        acc_norm: the same with every log-probability divided by the choice's UTF-8 bytes, without the space that it
            begins with; equal to acc for items with one choice, with labels, or in partial evaluation, whose
            continuations are all alike.
        acc_stderr, acc_norm_stderr: sample standard deviation over √n, which for right and wrong alone is
            √(p (1 - p) / (n - 1)); None for a single item. Items count as independent, twins too.
    """

    acc: float
    acc_norm: float
    acc_stderr: float | None
    acc_norm_stderr: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        return {
            "acc": self.acc,
            "acc_norm": self.acc_norm,
            "acc_stderr": self.acc_stderr,
            "acc_norm_stderr": self.acc_norm_stderr,
            "n": self.n,
        }


def score_tasks(
    scorer: Scorer, items: Sequence[TaskItem], *, progress: Callable[[int], None] = lambda done: None
) -> TaskScore:
    """The accuracy of a model on items; see `likelihood.encode_pair` for how texts become ids.

    `progress(done)` is called behind every item. InputError naming an item that cannot be scored, or if there is none;
    Failure naming the item where logits are not finite.
    """
    if not items:
        raise InputError("There are no items to score.")
    plain, normed = [], []
    for done, item in enumerate(items, start=1):
        try:
            found = pair_likelihoods(scorer, _pairs(scorer, item))
        except Failure as error:
            raise Failure(f"Scoring stopped at {item.where}: {error}") from None
        right = outcome(item, found)
        plain.append(right[0])
        normed.append(right[1])
        progress(done)
    acc, acc_norm = math.fsum(plain) / len(plain), math.fsum(normed) / len(normed)
    return TaskScore(acc, acc_norm, _standard_error(plain), _standard_error(normed), len(items))


def outcome(item: TaskItem, found: Sequence[Likelihood]) -> tuple[float, float]:
    """What one item adds to acc and acc_norm, each from 0 to 1.

    With labels it is the rule of lm-eval's truthfulqa_mc2 (Lin et al. 2022, arXiv 2109.07958): p(true choices) /
    p(all choices), probabilities not normalised by length.
    """
    scores = [likelihood.log_probability for likelihood in found]
    if item.labels is not None:
        top = max(scores)
        masses = [math.exp(score - top) for score in scores]
        share = sum(mass for mass, true in zip(masses, item.labels, strict=True) if true) / sum(masses)
        return share, share
    if len(found) == 1:
        return float(found[0].greedy), float(found[0].greedy)
    lengths = [len(text.removeprefix(" ").encode()) for text in item.continuations]
    normed = [score / length for score, length in zip(scores, lengths, strict=True)]
    return float(scores.index(max(scores)) == item.gold), float(normed.index(max(normed)) == item.gold)


def _pairs(scorer: Scorer, item: TaskItem) -> list[Pair]:
    try:
        return [encode_pair(scorer, *texts) for texts in zip(item.contexts, item.continuations, strict=True)]
    except PairError as error:
        raise InputError(f"{item.where[0].upper()}{item.where[1:]} {error}.") from None


def _standard_error(values: Sequence[float]) -> float | None:
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
