"""Predictions corrected by measurement: every type of matrix is perturbed once, through the model, on held-out windows.

The two-sided metric takes the input and the gradient of a token as independent and adds up positions and layers as if
they were independent too. Both understate the loss, by a factor that depends on the type of matrix (values, which
attention averages over positions, suffer most) and hardly on the size of the error. One measured perturbation a type
gives that factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import Estimator, last_hidden, logits_of, pulled, slim_graph, watching
from edge_svd.errors import Failure

WINDOWS = 6
POSITIONS_EVERY = 4
SHARE = 0.6
"""The perturbation keeps the rank whose bytes are nearest to this share of the dense int8 matrix."""

RANGE = (0.5, 30.0)


class HeldOutKl:
    """KL(dense ‖ current weights) on a few held-out windows, at every fourth position, in nats per token."""

    def __init__(self, model: Any, windows: torch.Tensor, softcap: float) -> None:
        self.model, self.windows, self.softcap = model, windows[:WINDOWS], softcap
        self.dense = [p.to(torch.float16) for p in self._log_probabilities()]

    def _log_probabilities(self) -> Iterator[torch.Tensor]:
        for ids in self.windows:
            with torch.inference_mode():
                hidden = self.model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, ::POSITIONS_EVERY]
                yield torch.log_softmax(logits_of(self.model, hidden, self.softcap)[0], dim=-1)

    def measure(self) -> float:
        """The divergence with the model's weights as they are now; Failure if it is not finite."""
        total, positions = 0.0, 0
        for dense, current in zip(self.dense, self._log_probabilities(), strict=True):
            p = dense.float()
            total += float((p.exp() * (p - current)).sum(dtype=torch.float64))
            positions += len(p)
        if not total < float("inf"):
            raise Failure("The perturbed model gives NaN or Inf on the held-out calibration windows.")
        return max(total / positions, 0.0)


def token_losses(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    errors: Mapping[str, torch.Tensor],
    precision: str,
    seed: int = 0,
) -> dict[str, float]:
    """½ E[(gᵀ E x)²] of every named error matrix E [m, n] (bfloat16), nats per token, one sampled cotangent each."""
    sums = dict.fromkeys(errors, 0.0)
    sites = [site for site in sites_of(architecture) if site.name in errors]

    def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        moved = (x.to(torch.bfloat16) @ errors[site.name].T).float()
        sums[site.name] += 0.5 * float((g.float() * moved).sum(1).square().sum(dtype=torch.float64))

    embedding = next(site.name for site in sites_of(architecture) if site.type == "embedding")
    chosen = windows[:WINDOWS]
    for number, ids in enumerate(chosen):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        with watching(model, sites, seen):
            with slim_graph():
                hidden = last_hidden(model, ids, embedding, lambda g: None, precision)
            pull = pulled(model, architecture, hidden.detach()[0], Estimator(precision=precision), 0, generator)
            hidden.backward(pull[None])
    return {name: total / chosen.numel() for name, total in sums.items()}


@contextmanager
def replaced(model: Any, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put other weights into named modules for a while; the originals come back untouched."""
    modules = {name: model.get_submodule(name) for name in weights}
    originals = {name: module.weight.data for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.weight.data = weights[name]
        yield
    finally:
        for name, module in modules.items():
            module.weight.data = originals[name]


class Probes:
    """Perturbed matrices, type by type, and what they show about the predictions."""

    def __init__(self, model: Any, architecture: Architecture, windows: torch.Tensor, kl: HeldOutKl) -> None:
        self.model, self.architecture, self.windows, self.kl = model, architecture, windows, kl
        self.predicted: dict[str, float] = {}
        self.errors: dict[str, torch.Tensor] = {}
        self.measured: dict[str, tuple[float, list[str]]] = {}

    def measure(self, kind: str, perturbed: Mapping[str, tuple[float, torch.Tensor]]) -> None:
        """Measure all matrices of a type perturbed together; name → (predicted loss, perturbed matrix)."""
        if not perturbed:
            return
        for name, (loss, weight) in perturbed.items():
            self.predicted[name] = loss
            self.errors[name] = (self.model.get_submodule(name).weight.detach() - weight).to(torch.bfloat16)
        with replaced(self.model, {name: weight for name, (_, weight) in perturbed.items()}):
            self.measured[kind] = self.kl.measure(), list(perturbed)

    def factors(self, precision: str) -> dict[str, float]:
        """Name → what its predictions are to be multiplied with. Ends the probes: the errors are dropped."""
        tokens = token_losses(self.model, self.architecture, self.windows, self.errors, precision)
        self.errors.clear()
        found = {}
        for loss, members in self.measured.values():
            common = factor(loss, sum(tokens[name] for name in members))
            for name in members:
                found[name] = common * factor(tokens[name], self.predicted[name])
        return found


def factor(measured: float, predicted: float) -> float:
    """Measured over predicted loss, within sane limits; 1 where nothing was predicted."""
    if predicted <= 0:
        return 1.0
    return min(max(measured / predicted, RANGE[0]), RANGE[1])
