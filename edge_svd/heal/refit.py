"""`refit`: B of every factor pair by least squares, given what really reaches it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.architectures import Site, sites_of
from edge_svd.calibrate.collect import inner_sites
from edge_svd.errors import Failure
from edge_svd.factored import FactoredLinear, Factors, factored
from edge_svd.heal.layers import Layers, reaching
from edge_svd.heal.registry import HEALINGS, Patient, Progress
from edge_svd.registry import within

BATCH = 4


@HEALINGS.register("refit")
@dataclass(frozen=True)
class Refit:
    """Closed form, layer by layer: B = argmin Σ ‖y − B A x̃‖², x̃ what the compressed layers before hand on.

    y = W x̃ + `mend` (W x − W x̃), x the dense model's own activation at that place: with 0 every matrix does its own
    work as well as rank k can on the inputs that it really gets (SVD-LLM, arXiv 2403.07378, its closed-form update);
    with 1 it is also to undo all that earlier layers got wrong (GPTAQ, arXiv 2504.02692), which it can on the
    calibration text alone. A quarter is the default (docs/methods.md). In forward order; matrices that read one input
    are refitted together, the later ones of a layer behind them. With Z = A X̃: B = (Y Zᵀ + λ B₀)(Z Zᵀ + λ I)⁻¹, λ
    `damping` (1e-3) of the mean diagonal, so that directions that no token takes keep the B they had. `windows` (32) of
    the calibration text; where anything is mended, a layer's outputs of them lie in memory, 4 bytes a number.
    """

    windows: float = 32
    mend: float = 0.25
    damping: float = 1e-3

    def __post_init__(self) -> None:
        within(self.windows, 1, float("inf"), "parameter windows of refit")
        within(self.mend, 0.0, 1.0, "parameter mend of refit")
        within(self.damping, 0.0, 1.0, "parameter damping of refit")

    def __call__(self, patient: Patient, factors: Mapping[str, Factors], progress: Progress) -> dict[str, Factors]:
        model, batches = patient.model, patient.windows[: int(self.windows)].split(BATCH)
        calls: dict[int, Layers] = {}
        compressed: list[torch.Tensor] = []
        for ids in batches:
            if len(ids) not in calls:
                calls[len(ids)] = Layers(model, patient.architecture, ids)
            compressed.append(calls[len(ids)].entering(ids))
        dense = list(compressed)
        found: dict[str, Factors] = {}
        sites = inner_sites(sites_of(patient.architecture))
        numbers = sorted({site.layer for site in sites})
        for number in numbers:
            own = [site for site in sites if site.layer == number]
            targets: list[dict[str, torch.Tensor]] = [{} for _ in batches]
            if self.mend:
                for at, states in enumerate(dense):
                    dense[at], targets[at] = _dense_outputs(model, calls[len(states)], number, states, own)
            weights = {site.name: model.get_submodule(site.name).weight for site in own}
            with factored(model, {site.name: factors[site.name] for site in own if site.name in factors}) as made:
                for group in _by_input(own):
                    names = [site.name for site in group if site.name in made]
                    if names:
                        inputs = [_input_of(model, group[0], calls[len(h)], number, h) for h in compressed]
                        for name in names:
                            pairs = zip(inputs, (target.get(name) for target in targets), strict=True)
                            made[name].b.data = self._refitted(made[name], weights[name], pairs, name)
                compressed = [calls[len(h)](number, h) for h in compressed]
            found |= {name: (module.b.detach(), module.a.detach()) for name, module in made.items()}
            progress(number + 1, len(numbers))
        return found

    def _refitted(
        self,
        module: FactoredLinear,
        weight: torch.Tensor,
        pairs: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
        name: str,
    ) -> torch.Tensor:
        """New B of one matrix from its inputs [tokens, n], each with the dense model's outputs [tokens, m], if any."""
        b, a = module.b.detach(), module.a.detach()
        gram = b.new_zeros(len(a), len(a), dtype=torch.float64)
        cross = torch.zeros_like(b, dtype=torch.float64)
        with torch.inference_mode():
            for x, output in pairs:
                z, y = x @ a.T, x @ weight.T
                if output is not None:
                    y += self.mend * (output - y)
                gram += z.T @ z
                cross += y.T @ z
        damping = self.damping * float(gram.diagonal().mean())
        gram.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            raise Failure(f"The least squares of refit have no solution at {name}; give refit a larger damping.")
        return torch.cholesky_solve((cross + damping * b).T, factor).T.float().contiguous()


def _by_input(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that read the same input, in forward order."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.input, []).append(site)
    return list(groups.values())


def _dense_outputs(
    model: Any, calls: Layers, number: int, hidden: torch.Tensor, sites: Sequence[Site]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What leaves the dense layer, and what its matrices give without their biases, [tokens, m]."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, _: Any, output: torch.Tensor) -> None:
            found[name] = (output if module.bias is None else output - module.bias).flatten(0, -2)

        return hook

    handles = [model.get_submodule(site.name).register_forward_hook(keep(site.name)) for site in sites]
    try:
        return calls(number, hidden), found
    finally:
        for handle in handles:
            handle.remove()


def _input_of(model: Any, site: Site, calls: Layers, number: int, hidden: torch.Tensor) -> torch.Tensor:
    """What reaches a matrix with the modules that stand there now, [tokens, n]."""
    found = reaching(model.get_submodule(site.name), lambda: calls(number, hidden))
    if found is None:
        raise Failure(f"The layer {number} does not call {site.name}.")
    return found.flatten(0, -2)
