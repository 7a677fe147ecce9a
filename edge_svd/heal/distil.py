"""`distil`: all factors together trained on the dense model's distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edge_svd.distillation import pull_towards
from edge_svd.errors import Failure
from edge_svd.factored import Factors, factored
from edge_svd.heal.registry import HEALINGS, Patient, Progress
from edge_svd.registry import within

WARM = 0.05
"""Share of the steps over which the rate rises."""


@HEALINGS.register("distil")
@dataclass(frozen=True)
class Distil:
    """Adam on KL(dense ‖ factored) of the calibration text, `steps` (300) of `batch` (1) windows, into both factors.

    Hinton et al. 2015 (arXiv 1503.02531) at temperature 1; all of A and B are trained, where SVD-LLM (arXiv
    2403.07378, section 3.3) trains LoRA on them. The rate rises over a twentieth of the steps to `rate` (3e-4, of
    factors whose largest entries are balanced) and falls to zero as a cosine; gradients are cut to norm one. Windows
    come in a seeded order, over and over.
    """

    steps: float = 300
    rate: float = 3e-4
    batch: float = 1

    def __post_init__(self) -> None:
        within(self.steps, 1, 1e6, "parameter steps of distil")
        within(self.rate, 0.0, 1.0, "parameter rate of distil")
        within(self.batch, 1, 1024, "parameter batch of distil")

    def __call__(self, patient: Patient, factors: Mapping[str, Factors], progress: Progress) -> dict[str, Factors]:
        steps, model, architecture = int(self.steps), patient.model, patient.architecture
        body = architecture.layout.body
        order = _order(len(patient.windows), steps * int(self.batch), patient.seed)
        targets = {at: patient.dense_states(at) for at in sorted(set(order))}
        own = {name: (b.clone(), a.clone()) for name, (b, a) in factors.items()}
        with factored(model, own) as made:
            parameters = [part for module in made.values() for part in (module.b, module.a)]
            for part in parameters:
                part.requires_grad_(True)
            optimiser = torch.optim.Adam(parameters, lr=self.rate, betas=(0.9, 0.95), fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: _rate(at / steps))
            for at in range(steps):
                chosen = order[at * int(self.batch) : (at + 1) * int(self.batch)]
                optimiser.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    hidden = model.get_submodule(body)(
                        input_ids=patient.windows[chosen], use_cache=False
                    ).last_hidden_state
                target = torch.cat([targets[i] for i in chosen]).float()
                pull = pull_towards(model, model, target, hidden.detach().flatten(0, 1), architecture, "float32")
                hidden.backward(pull.view_as(hidden))
                norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                if not bool(torch.isfinite(norm)):
                    raise Failure(f"Distilling gave gradients that are not finite at step {at + 1}; lower its rate.")
                optimiser.step()
                schedule.step()
                progress(at + 1, steps)
        return own


def _order(count: int, wanted: int, seed: int) -> list[int]:
    """Numbers of windows, every one once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < wanted:
        found += torch.randperm(count, generator=generator).tolist()
    return found[:wanted]


def _rate(share: float) -> float:
    """Share of the full rate after a share of the steps."""
    return min(1.0, (share + 1e-3) / WARM) * 0.5 * (1 + math.cos(math.pi * share))
