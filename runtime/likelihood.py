"""How likely a model finds a continuation behind a context: the question that every multiple-choice task asks.

Pairs of texts become ids as in EleutherAI's lm-evaluation-harness (`TemplateLM._encode_pair` and
`HFLM._loglikelihood_tokens` of lm-eval 0.4), so that figures can be set beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from edge_svd.runtime.errors import InputError

Ids = Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """The sum of a continuation's log-probabilities in nats, and whether each of its tokens was the likeliest one."""

    log_probability: float
    greedy: bool


class Scorer(Protocol):
    """A model with its tokenizer, wherever it runs."""

    @property
    def max_context(self) -> int:
        """Most tokens that one pass may see."""

    @property
    def prefix_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none (`prefix_of`)."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens added."""

    def likelihoods(self, context: Ids, continuations: Sequence[Ids]) -> list[Likelihood]:
        """Of each continuation behind the same context; neither may be empty.

        Together, but for the last token, they take at most `max_context` tokens. Failure on logits that are not finite.
        """


@dataclass(frozen=True)
class Pair:
    """A context and its continuation as ids, both with at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class PairError(Exception):
    """Why a pair cannot be scored, as the end of a sentence that begins with its name."""


def encode_pair(scorer: Scorer, context: str, continuation: str) -> Pair:
    """The ids of two texts that follow each other.

    Spaces at the end of the context go to the continuation, since tokenizers put them before a word. Both are encoded
    as one text, and the continuation is what lies behind as many ids as the context has alone. A context that is empty
    (or nothing but spaces) is one token, `scorer.prefix_id`, which is not doubled where the continuation begins with
    it.

    PairError as `fitted`.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    first = tuple(scorer.encode(context)) if context else ()
    last = tuple(scorer.encode(context + continuation)[len(first) :])
    if not first:
        first, last = (last[:1], last[1:]) if last[:1] == (scorer.prefix_id,) else ((scorer.prefix_id,), last)
    return fitted(first, last, scorer.max_context)


def fitted(context: Ids, continuation: Ids, longest: int) -> Pair:
    """The pair without its earliest tokens where one pass of a model, of `longest` tokens, cannot take them.

    PairError if the continuation has no tokens, or more than that.
    """
    if not continuation:
        raise PairError("has a continuation of which the tokenizer leaves no token of its own")
    if len(continuation) > longest:
        raise PairError(
            f"has a continuation of {len(continuation)} tokens, longer than the model's context of {longest}"
        )
    # The last token is predicted and never read, hence one more.
    return Pair(tuple(context[-(longest + 1 - len(continuation)) :]), tuple(continuation))


def pair_likelihoods(scorer: Scorer, pairs: Sequence[Pair]) -> list[Likelihood]:
    """Of every pair, in their order; contexts that follow each other and are the same are read once."""
    found: list[Likelihood] = []
    for context, group in groupby(pairs, key=lambda pair: pair.context):
        found += scorer.likelihoods(context, [pair.continuation for pair in group])
    return found


def prefix_of(bos: int | None, eos: Sequence[int]) -> int:
    """BOS if the model has one, its first EOS otherwise, as lm-eval chooses; InputError if there is neither."""
    for token in (bos, *eos):
        if token is not None:
            return token
    raise InputError("The model names neither a BOS nor an EOS token, so a text without context cannot be scored.")


def kept_length(known: Ids, ids: Ids, chunk: int) -> int:
    """How many tokens of `ids` need not be read again where `known` were read in passes of `chunk` from the start.

    Whole passes that are the same, so that what follows does not depend on what was read before; never the last token,
    since what it predicts is wanted.
    """
    pairs = enumerate(zip(known, ids, strict=False))
    common = next((at for at, (left, right) in pairs if left != right), min(len(known), len(ids)))
    return min(common, len(ids) - 1) // chunk * chunk
