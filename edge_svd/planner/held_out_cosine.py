"""The measure of an encoder's predictions: 1 - cosine to the dense model on held-out passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.passage_moments import batches, pull_back_signs, random_signs, watching_passages
from edge_svd.encoders.architecture import Encoder
from edge_svd.encoders.pooling import embeddings
from edge_svd.errors import Failure
from edge_svd.planner.held_out import WINDOWS
from edge_svd.planner.narrow import Narrow

PASSAGES_A_WINDOW = 16
"""Passages that stand for a decoder's window: about as many tokens."""


class HeldOutCosine:
    """Mean 1 - cosine of the embeddings with the current weights to those of the dense ones, on held-out passages."""

    def __init__(self, model: Any, encoder: Encoder, passages: torch.Tensor) -> None:
        self.model, self.encoder = model, encoder
        self.passages = passages[: WINDOWS * PASSAGES_A_WINDOW]
        self.dense = embeddings(model, self.passages, encoder.pooling).double()

    def measure(self, windows: int = WINDOWS) -> float:
        """With the model's weights as they are now, on that many windows' passages; Failure if it is not finite."""
        count = windows * PASSAGES_A_WINDOW
        current = embeddings(self.model, self.passages[:count], self.encoder.pooling).double()
        # ½ ‖difference‖² is 1 - cosine of vectors of length one, without the cancellation.
        loss = 0.5 * float((current - self.dense[:count]).square().sum(1).mean())
        if not loss < float("inf"):
            raise Failure("The perturbed model gives NaN or Inf on the held-out calibration passages.")
        return loss


def passage_losses(
    model: Any, encoder: Encoder, passages: torch.Tensor, errors: Mapping[str, Sequence[Narrow]], seed: int = 0
) -> dict[str, list[float]]:
    """½ E[(Σ_t g_tᵀ E x_t)²] of every error matrix E [m, n] of every named site, one vector of signs a passage."""
    sums = {name: [0.0] * len(found) for name, found in errors.items()}
    sites = [site for site in encoder.sites if site.name in errors]

    def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        for number, error in enumerate(errors[site.name]):
            pulls = (g * error.moved(x)).sum((1, 2))
            sums[site.name][number] += 0.5 * float(pulls.square().sum(dtype=torch.float64))

    generator = torch.Generator().manual_seed(seed)
    chosen = passages[: WINDOWS * PASSAGES_A_WINDOW]
    with watching_passages(model, sites, seen):
        for batch in batches(chosen):
            pull_back_signs(model, encoder, batch, random_signs(len(batch), encoder.hidden_size, generator))
    return {name: [total / len(chosen) for total in found] for name, found in sums.items()}
