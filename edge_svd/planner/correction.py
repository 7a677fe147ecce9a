"""Predictions corrected by measurement: every type of matrix is perturbed once, through the model, on held-out windows.

The two-sided metric takes the input and the gradient of a token as independent and adds up positions and layers as if
they were independent too. Both understate the loss, by a factor that depends on the type of matrix (values, which
attention averages over positions, suffer most) and hardly on the size of the error. One measured perturbation a type
gives that factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import Estimator, last_hidden, pulled, slim_graph, watching
from edge_svd.described import Described
from edge_svd.encoders.architecture import Encoder
from edge_svd.planner.held_out import FEW_WINDOWS, HALF_WINDOWS, WINDOWS, HeldOutKl, Measure, replaced
from edge_svd.planner.held_out_cosine import HeldOutCosine, passage_losses
from edge_svd.planner.narrow import Narrow
from edge_svd.runtime.memory import release_free_memory
from edge_svd.streaming.on_demand import is_streamed
from edge_svd.streaming.scratch import kept, scratch_folder
from edge_svd.streaming.walk import Seeing, Walk

SHARE, THIN_SHARE = 0.6, 0.12
"""The perturbation keeps the rank whose bytes are nearest to this share of the dense int8 matrix; few components are
perturbed on their own where errors are steep."""

RANGE = (0.5, 30.0)
LEAST_FACTOR = 0.05
"""A table's prediction counts tokens that the held-out windows lack; measured on those, its loss may be far smaller."""

ALONE = ("q", "k", "v", "qkv", "o")
"""Types of matrices that are measured alone in the first layer: they read nothing but the token there, so that the
errors of all its occurrences agree, and the loss is not what the sum over positions says: for keys fifty times it, for
what attention mixes from the tokens a third."""

Perturbed = tuple[float, Narrow]
"""Predicted loss of an error, nats per token, and the error [m, n]."""


def token_losses(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    errors: Mapping[str, Sequence[Narrow]],
    precision: str,
    seed: int = 0,
) -> dict[str, list[float]]:
    """½ E[(gᵀ E x)²] of every error matrix E [m, n] of every named site, nats per token, one sampled cotangent each."""
    sums = {name: [0.0] * len(found) for name, found in errors.items()}
    sites = [site for site in sites_of(architecture) if site.name in errors]

    def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        x, g = x.float(), g.float()
        for number, error in enumerate(errors[site.name]):
            pulls = (g * error.to(x.device).moved(x)).sum(1)
            sums[site.name][number] += 0.5 * float(pulls.square().sum(dtype=torch.float64))

    chosen = windows[:FEW_WINDOWS].to(model.device)

    def pull(number: int, states: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        return pulled(model, architecture, states, Estimator(precision=precision), 0, generator)[None]

    if is_streamed(model):
        with scratch_folder() as folder:
            walk = Walk(model, architecture, chosen, folder, precision)
            walk.run(pull, lambda: None, lambda _: Seeing({site.name for site in sites}, seen))
    else:
        embedding = next(site.name for site in sites_of(architecture) if site.type == "embedding")
        for number, ids in enumerate(chosen):
            with watching(model, sites, seen):
                with slim_graph():
                    hidden = last_hidden(model, ids, embedding, lambda g: None, precision)
                hidden.backward(pull(number, hidden.detach()[0]))
    return {name: [total / chosen.numel() for total in found] for name, found in sums.items()}


def alone(site: Site) -> bool:
    """Whether a matrix is perturbed on its own."""
    return site.layer == 0 and site.type in ALONE


def together(sites: Sequence[Site]) -> list[list[Site]]:
    """The matrices of a type, divided into those that are perturbed together."""
    return [*([site] for site in sites if alone(site)), [site for site in sites if not alone(site)]]


class Probes:
    """Perturbed matrices, group by group and by kind of rounding, and what they show about the predictions."""

    def __init__(self, model: Any, architecture: Described, windows: torch.Tensor, precision: str) -> None:
        self.model, self.architecture, self.windows, self.precision = model, architecture, windows, precision
        self.kl: Measure
        self.alone: Measure
        if isinstance(architecture, Encoder):
            self.kl = self.alone = HeldOutCosine(model, architecture, windows)
        else:
            self.kl = HeldOutKl(model, windows, architecture, precision)
            half = windows[:HALF_WINDOWS, : windows.shape[1] // 2]
            self.alone = HeldOutKl(model, half, architecture)
        self.predicted: dict[tuple[str, str], float] = {}
        self.errors: dict[tuple[str, str], Narrow] = {}
        self.measured: list[tuple[str, list[str], float]] = []

    def measure(self, rounding: str, perturbed: Mapping[str, Perturbed], windows: int = WINDOWS) -> None:
        """Measure matrices perturbed together, by one kind of rounding."""
        names, weights = list(perturbed), {}
        for name, (loss, error) in perturbed.items():
            self.predicted[rounding, name] = loss
            if len(names) > 1:
                self.errors[rounding, name] = error
            own = self.model.get_submodule(name).weight.detach()
            weight = error.to(own.device).matrix().neg_().add_(own)
            weights[name] = kept(self.model, weight)
        if weights:
            with replaced(self.model, weights):
                loss = self.kl.measure(windows) if len(weights) > 1 else self.alone.measure()
            self.measured.append((rounding, names, loss))

    def _one_by_one(self, errors: Mapping[str, Sequence[Narrow]]) -> dict[str, list[float]]:
        if isinstance(self.architecture, Encoder):
            return passage_losses(self.model, self.architecture, self.windows, errors)
        return token_losses(self.model, self.architecture, self.windows, errors, self.precision)

    def factors(self) -> dict[str, dict[str, float]]:
        """Rounding → name → what its predictions are to be multiplied with. Ends the probes: the errors and the
        log-probabilities are dropped."""
        del self.kl, self.alone
        release_free_memory()
        named: dict[str, list[Narrow]] = {}
        for (_, name), error in self.errors.items():
            named.setdefault(name, []).append(error)
        losses = self._one_by_one(named) if named else {}
        tokens = {key: losses[key[1]].pop(0) for key in self.errors}
        self.errors.clear()
        found: dict[str, dict[str, float]] = {}
        for rounding, members, loss in self.measured:
            of = found.setdefault(rounding, {})
            if len(members) == 1:
                of[members[0]] = ratio(loss, self.predicted[rounding, members[0]])
                continue
            common = factor(loss, sum(tokens[rounding, name] for name in members))
            for name in members:
                of[name] = common * factor(tokens[rounding, name], self.predicted[rounding, name])
        return found


def ratio(measured: float, predicted: float) -> float:
    """Measured over predicted loss of one matrix's errors; 1 where nothing was predicted."""
    return max(measured / predicted, LEAST_FACTOR) if predicted > 0 else 1.0


def factor(measured: float, predicted: float) -> float:
    """Measured over predicted loss, within sane limits; 1 where nothing was predicted."""
    if predicted <= 0:
        return 1.0
    return min(max(measured / predicted, RANGE[0]), RANGE[1])
