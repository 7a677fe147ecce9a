"""Continuations scored by a transformers model: a context is read once, its continuations as one batch behind it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from edge_svd.errors import Failure
from edge_svd.runtime.likelihood import Ids, Likelihood, prefix_of

# Rows of logits a batch makes at most (of more than one continuation): 100 MB with 49,152 tokens.
_ROWS = 512


class ModelScorer:
    """A dense model, a loaded checkpoint, or one whose weights were replaced (a `runtime.likelihood.Scorer`).

    Weights are read anew at every call, so a caller may change them in between.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """`model` as transformers' AutoModelForCausalLM gives it, in eval mode; `tokenizer` as its AutoTokenizer."""
        self.model = model
        self.tokenizer = tokenizer
        # Keys and values of a context are wanted for all its tokens, logits for the last one.
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )

    @property
    def max_context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def prefix_id(self) -> int:
        config = self.model.config
        eos = config.eos_token_id
        return prefix_of(config.bos_token_id, eos if isinstance(eos, list) else [] if eos is None else [eos])

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def likelihoods(self, context: Ids, continuations: Sequence[Ids]) -> list[Likelihood]:
        """See `runtime.likelihood.Scorer`."""
        with torch.inference_mode():
            # Without a configuration, every layer keeps every token, and windows are a matter of masks.
            past = DynamicCache()
            read = self._pass([list(context)], past, **self._last_only)[0, -1:]
            found: list[Likelihood] = []
            for batch in _batches(continuations):
                longest = max(map(len, batch)) - 1
                if not longest:
                    found += [_likelihood(read, ids) for ids in batch]
                    continue
                # Padding comes behind: nothing that counts attends to it.
                padded = [[*ids[:-1], *[ids[-1]] * (longest + 1 - len(ids))] for ids in batch]
                own = copy.deepcopy(past)
                own.batch_repeat_interleave(len(batch))
                logits = self._pass(padded, own)
                found += [
                    _likelihood(torch.cat((read, rows[: len(ids) - 1])), ids)
                    for ids, rows in zip(batch, logits, strict=True)
                ]
            return found

    def _pass(self, ids: list[list[int]], past: DynamicCache, **settings: Any) -> torch.Tensor:
        """Logits [batch, sequence, vocabulary]; `past` grows by what was read."""
        device = self.model.device
        output = self.model(
            input_ids=torch.tensor(ids, device=device), past_key_values=past, use_cache=True, **settings
        )
        logits: torch.Tensor = output.logits
        return logits


def _likelihood(logits: torch.Tensor, ids: Ids) -> Likelihood:
    """Of `ids`, from the logits [len(ids), vocabulary] that predict each; Failure if they are not finite."""
    rows, targets = logits.float(), torch.tensor(list(ids), device=logits.device)
    if not torch.isfinite(rows).all():
        raise Failure("The model's logits hold NaN or Inf.")
    picked = torch.log_softmax(rows, dim=-1).gather(1, targets[:, None])
    return Likelihood(float(picked.sum(dtype=torch.float64)), bool((rows.argmax(dim=-1) == targets).all()))


def _batches(continuations: Sequence[Ids]) -> list[list[Ids]]:
    """The continuations in order, as many at once as `_ROWS` allows, padding counted."""
    batches: list[list[Ids]] = []
    for ids in continuations:
        last = batches[-1] if batches else []
        if last and max(len(ids), *map(len, last)) * (len(last) + 1) <= _ROWS:
            last.append(ids)
        else:
            batches.append([ids])
    return batches
