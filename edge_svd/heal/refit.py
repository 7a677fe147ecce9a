"""`refit`: B of every factor pair by least squares, given what really reaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.architectures import Site, sites_of
from edge_svd.calibrate.collect import inner_sites
from edge_svd.errors import Failure
from edge_svd.factored import FactoredLinear, Factors, factored
from edge_svd.heal.healing import HEALINGS, Patient, Progress
from edge_svd.heal.layers import Layers
from edge_svd.registry import within

BATCH = 4


class _Reached(Exception):
    """Ends a layer's forward pass where the rest of it is not wanted."""


@HEALINGS.register("refit")
@dataclass(frozen=True)
class Refit:
    """Closed form, layer by layer: B = argmin Σ ‖W x − B A x̃‖², x̃ what the compressed layers before hand on.

    x are the dense model's own activations at that place, so what earlier layers got wrong is mended as far as rank k
    can. In forward order; matrices that read one input are refitted together, the later ones of a layer behind them
    (SVD-LLM, arXiv 2403.07378, section 3.3, updates U in this way under the same inputs on both sides; targets
    of the uncompressed model as in GPTAQ, arXiv 2504.02692). With Z = A X̃: B = (W X Zᵀ + λ B₀)(Z Zᵀ + λ I)⁻¹, λ
    `damping` (1e-3) of the mean diagonal, so that directions that no token takes keep the B they had. `windows` (64)
    of the calibration text; a layer's outputs of them lie in memory, 4 bytes a number.
    """

    windows: float = 64
    damping: float = 1e-3

    def __post_init__(self) -> None:
        within(self.windows, 1, float("inf"), "parameter windows of refit")
        within(self.damping, 0.0, 1.0, "parameter damping of refit")

    def __call__(self, patient: Patient, factors: Mapping[str, Factors], progress: Progress) -> dict[str, Factors]:
        batches = patient.windows[: int(self.windows)].split(BATCH)
        calls = {len(ids): Layers(patient.model, patient.architecture, ids) for ids in batches}
        dense = [_entering(patient, ids) for ids in batches]
        compressed = [states.clone() for states in dense]
        found: dict[str, Factors] = {}
        sites = inner_sites(sites_of(patient.architecture))
        numbers = sorted({site.layer for site in sites})
        for number in numbers:
            own = [site for site in sites if site.layer == number]
            outputs = [_dense_outputs(patient.model, calls[len(h)], number, h, own) for h in dense]
            dense = [states for states, _ in outputs]
            with factored(patient.model, {s.name: factors[s.name] for s in own if s.name in factors}) as made:
                for group in _by_input(own):
                    self._refit(
                        patient.model, group, made, calls, number, compressed, [found_at for _, found_at in outputs]
                    )
                compressed = [calls[len(h)](number, h) for h in compressed]
            found |= {name: (module.b.detach(), module.a.detach()) for name, module in made.items()}
            progress(number + 1, len(numbers))
        return found

    def _refit(
        self,
        model: Any,
        group: Sequence[Site],
        made: Mapping[str, FactoredLinear],
        calls: Mapping[int, Layers],
        number: int,
        hidden: Sequence[torch.Tensor],
        targets: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:
        """New B for the matrices of one input."""
        own = [site.name for site in group if site.name in made]
        if not own:
            return
        sums = {
            name: (
                made[name].b.new_zeros(k := made[name].a.shape[0], k, dtype=torch.float64),
                torch.zeros_like(made[name].b, dtype=torch.float64),
            )
            for name in own
        }
        for states, target in zip(hidden, targets, strict=True):
            x = _input_of(model, group[0], calls[len(states)], number, states)
            for name in own:
                z = x @ made[name].a.detach().T
                sums[name][0].add_(z.T @ z)
                sums[name][1].add_(target[name].T @ z)
        for name in own:
            gram, cross = sums[name]
            damping = self.damping * float(gram.diagonal().mean())
            gram.diagonal().add_(damping)
            cross += damping * made[name].b.detach()
            factor, info = torch.linalg.cholesky_ex(gram)
            if int(info):
                raise Failure(f"The least squares of refit have no solution at {name}; give refit a larger damping.")
            made[name].b.data = torch.cholesky_solve(cross.T, factor).T.float().contiguous()


def _entering(patient: Patient, ids: torch.Tensor) -> torch.Tensor:
    """What enters the first layer for these ids."""
    return Layers(patient.model, patient.architecture, ids).first


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
    seen: list[torch.Tensor] = []

    def stop(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0].flatten(0, -2))
        raise _Reached

    handle = model.get_submodule(site.name).register_forward_pre_hook(stop)
    try:
        calls(number, hidden)
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise Failure(f"The layer {number} does not call {site.name}.")
