"""Predictions corrected by measurement: every type of matrix is perturbed once, through the model, on held-out windows.

The two-sided metric takes the input and the gradient of a token as independent and adds up positions and layers as if
they were independent too. Both understate the loss, by a factor that depends on the type of matrix (values, which
attention averages over positions, suffer most) and hardly on the size of the error. One measured perturbation a type
gives that factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import Estimator, last_hidden, logits_of, pulled, slim_graph, watching
from edge_svd.errors import Failure
from edge_svd.formats import INT8_LIMIT
from edge_svd.runtime.memory import release_free_memory

WINDOWS, FEW_WINDOWS, HALF_WINDOWS = 6, 3, 4
"""Held-out windows of a measurement; of one whose loss is large against its noise, and of what single matrices of a
type have of its loss; and half windows of one of a single matrix, which is in fp32, because what bfloat16 adds would
drown it: more of them, because windows differ more than their halves do."""

BATCH = 3
POSITIONS_EVERY = 4
"""Not the first: it is unlike all others, and would count that many times."""
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

Perturbed = tuple[float, torch.Tensor]
"""Predicted loss of an error, nats per token, and the error [m, n]: fp32."""


class HeldOutKl:
    """KL(dense ‖ current weights) on a few held-out windows, at every fourth position, in nats per token.

    The layers compute in `precision`, on both sides of the divergence; logits are always fp32.
    """

    def __init__(self, model: Any, windows: torch.Tensor, softcap: float, precision: str = "float32") -> None:
        self.model, self.windows, self.softcap = model, windows[:WINDOWS], softcap
        self.half = precision == "bfloat16"
        self.dense = [p.to(torch.float16) for p in self._log_probabilities()]

    def _log_probabilities(self, windows: int = WINDOWS) -> Iterator[torch.Tensor]:
        for ids in self.windows[:windows].split(BATCH):
            with torch.inference_mode():
                # Every weight is used once: the cache would only keep all of them in bfloat16.
                with torch.autocast("cpu", torch.bfloat16, enabled=self.half, cache_enabled=False):
                    hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
                for states in hidden[:, POSITIONS_EVERY - 1 :: POSITIONS_EVERY].float():
                    yield torch.log_softmax(logits_of(self.model, states, self.softcap)[0], dim=-1)

    def measure(self, windows: int = WINDOWS) -> float:
        """The divergence with the model's weights as they are now; Failure if it is not finite."""
        total, positions = 0.0, 0
        for dense, current in zip(self.dense[:windows], self._log_probabilities(windows), strict=True):
            p = dense.float()
            total += float((p.exp() * (p - current)).sum(dtype=torch.float64))
            positions += len(p)
        if not total < float("inf"):
            raise Failure("The perturbed model gives NaN or Inf on the held-out calibration windows.")
        return max(total / positions, 0.0)


@dataclass(frozen=True)
class _Narrow:
    """An error matrix [m, n] in int8, a quarter of its bytes, because two sets of the whole model are held at once.

    With a scale a row and one a column: errors are a thousand times smaller where inputs are massive, and a step that
    fits the other columns would drown them.
    """

    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, error: torch.Tensor) -> _Narrow:
        columns = error.square().mean(0).sqrt_().clamp_min_(1e-30)
        level = error / columns
        rows = level.abs().amax(1, keepdim=True).clamp_min_(1e-30) / INT8_LIMIT
        return cls((level / rows).round_().to(torch.int8), rows[:, 0], columns)

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """E x for x [tokens, n]: fp32 [tokens, m], the product in bfloat16."""
        return ((x * self.columns).to(torch.bfloat16) @ self.values.to(torch.bfloat16).T).float() * self.rows


def token_losses(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    errors: Mapping[str, Sequence[_Narrow]],
    precision: str,
    seed: int = 0,
) -> dict[str, list[float]]:
    """½ E[(gᵀ E x)²] of every error matrix E [m, n] of every named site, nats per token, one sampled cotangent each."""
    sums = {name: [0.0] * len(found) for name, found in errors.items()}
    sites = [site for site in sites_of(architecture) if site.name in errors]

    def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        x, g = x.float(), g.float()
        for number, error in enumerate(errors[site.name]):
            pulls = (g * error.moved(x)).sum(1)
            sums[site.name][number] += 0.5 * float(pulls.square().sum(dtype=torch.float64))

    embedding = next(site.name for site in sites_of(architecture) if site.type == "embedding")
    chosen = windows[:FEW_WINDOWS]
    for number, ids in enumerate(chosen):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        with watching(model, sites, seen):
            with slim_graph():
                hidden = last_hidden(model, ids, embedding, lambda g: None, precision)
            pull = pulled(model, architecture, hidden.detach()[0], Estimator(precision=precision), 0, generator)
            hidden.backward(pull[None])
    return {name: [total / chosen.numel() for total in found] for name, found in sums.items()}


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


def alone(site: Site) -> bool:
    """Whether a matrix is perturbed on its own."""
    return site.layer == 0 and site.type in ALONE


def together(sites: Sequence[Site]) -> list[list[Site]]:
    """The matrices of a type, divided into those that are perturbed together."""
    return [*([site] for site in sites if alone(site)), [site for site in sites if not alone(site)]]


class Probes:
    """Perturbed matrices, group by group and by kind of rounding, and what they show about the predictions."""

    def __init__(self, model: Any, architecture: Architecture, windows: torch.Tensor, precision: str) -> None:
        self.model, self.architecture, self.windows, self.precision = model, architecture, windows, precision
        self.kl = HeldOutKl(model, windows, architecture.logit_softcap, precision)
        half = windows[:HALF_WINDOWS, : windows.shape[1] // 2]
        self.alone = HeldOutKl(model, half, architecture.logit_softcap)
        self.predicted: dict[tuple[str, str], float] = {}
        self.errors: dict[tuple[str, str], _Narrow] = {}
        self.measured: list[tuple[str, list[str], float]] = []

    def measure(self, rounding: str, perturbed: dict[str, Perturbed], windows: int = WINDOWS) -> None:
        """Measure matrices perturbed together, by one kind of rounding; `perturbed` is used up: its errors become the
        perturbed weights, which saves a copy of a type's matrices."""
        names, weights = list(perturbed), {}
        for name in names:
            loss, error = perturbed.pop(name)
            self.predicted[rounding, name] = loss
            if len(names) > 1:
                self.errors[rounding, name] = _Narrow.of(error)
            weights[name] = error.neg_().add_(self.model.get_submodule(name).weight.detach())
        if weights:
            with replaced(self.model, weights):
                loss = self.kl.measure(windows) if len(weights) > 1 else self.alone.measure()
            self.measured.append((rounding, names, loss))

    def factors(self) -> dict[str, dict[str, float]]:
        """Rounding → name → what its predictions are to be multiplied with. Ends the probes: the errors and the
        log-probabilities are dropped."""
        del self.kl, self.alone
        release_free_memory()
        named: dict[str, list[_Narrow]] = {}
        for (_, name), error in self.errors.items():
            named.setdefault(name, []).append(error)
        losses = token_losses(self.model, self.architecture, self.windows, named, self.precision) if named else {}
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
