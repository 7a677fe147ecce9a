"""Healing step by step, with the record of what each step cost and gained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.errors import Failure
from edge_svd.factored import Factors, factored
from edge_svd.heal.registry import Patient, Progress, healing
from edge_svd.planner.held_out import HeldOutKl


@dataclass(frozen=True)
class Healed:
    """Better factors, and of every step its name, seconds, and the KL to the dense model on held-out windows before
    and after it, nats per token. A step that gained nothing there was not kept."""

    factors: dict[str, Factors]
    steps: list[dict[str, Any]]


def heal(text: str, patient: Patient, factors: Mapping[str, Factors], meter: HeldOutKl, progress: Progress) -> Healed:
    """Take the steps that `text` names, one after the other, and keep what helps on the meter's windows.

    Raises:
        InputError: an unknown name or parameter. Failure: NaN or Inf on the way.
    """

    def measured(found: Mapping[str, Factors]) -> float:
        with factored(patient.model, found):
            return meter.measure()

    best, steps = dict(factors), []
    before = measured(best)
    for name, step in healing(text):
        start = time.monotonic()
        made = step(patient, best, progress)
        seconds = time.monotonic() - start
        if not all(bool(torch.isfinite(part).all()) for pair in made.values() for part in pair):
            raise Failure(f"Healing by {name} gave NaN or Inf.")
        after = measured(made)
        kept = after < before
        steps.append({"step": name, "seconds": round(seconds, 1), "kl_before": before, "kl_after": after, "kept": kept})
        if kept:
            best, before = made, after
    return Healed(best, steps)
