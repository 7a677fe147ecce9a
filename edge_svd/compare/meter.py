"""Perplexity and KL to the dense model of the weights as they are now, on one text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.architectures import Architecture
from edge_svd.calibrate.collect import logits_of
from edge_svd.errors import Failure
from edge_svd.runtime.score import cut_windows

ROWS = 128

BATCH = 4
"""Windows that pass the layers together: products of a small model use the cores better."""

KL_EVERY = 4
"""The dense model's distributions are kept at every fourth position: a gigabyte less for every text, and the mean over
24 windows moves by less than its error."""


@dataclass(frozen=True)
class Loss:
    """Perplexity over all predictions, KL(dense ‖ current) at every fourth, nats per token."""

    perplexity: float
    kl: float


class TextMeter:
    """Measures on the first `windows` windows of a tokenised text, as `runtime.score.perplexity` cuts them."""

    def __init__(
        self, model: Any, architecture: Architecture, ids: Sequence[int], *, window: int, windows: int
    ) -> None:
        """To be made while the model is dense. InputError if the text is shorter than one window."""
        self.model, self.architecture = model, architecture
        self.windows = torch.from_numpy(cut_windows(ids, window, windows))
        self.reference: list[torch.Tensor] = []
        self.dense = self.measure()

    def _logits(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(row, positions, logits [positions, vocabulary]) of every block of every window."""
        body = self.model.get_submodule(self.architecture.layout.body)
        for first in range(0, len(self.windows), BATCH):
            with torch.inference_mode():
                ids = self.windows[first : first + BATCH].to(self.model.device)
                hidden = body(input_ids=ids, use_cache=False).last_hidden_state
                for row, states in enumerate(hidden[:, :-1].float(), first):
                    for positions in torch.arange(len(states)).split(ROWS):
                        yield row, positions, logits_of(self.model, states[positions], self.architecture)[0]

    def measure(self) -> Loss:
        """Failure where a logit is not finite."""
        total, divergence, compared = 0.0, 0.0, 0
        first = not self.reference
        for block, (row, positions, logits) in enumerate(self._logits()):
            targets = self.windows[row, positions + 1].to(logits.device)
            total += float((logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).sum(dtype=torch.float64))
            q = torch.log_softmax(logits[positions % KL_EVERY == KL_EVERY - 1], dim=-1)
            if first:
                self.reference.append(q.to("cpu", torch.float16))
            p = self.reference[block].to(q.device).float()
            divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            compared += len(p)
        nll = total / self.windows[:, 1:].numel()
        if not (math.isfinite(nll) and math.isfinite(divergence)):
            raise Failure("The compressed model gives NaN or Inf on this text.")
        return Loss(math.exp(min(nll, 700.0)), max(divergence / max(compared, 1), 0.0))
