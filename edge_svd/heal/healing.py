"""The ways of healing by name, what they work on, and the record of what each of them gained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from edge_svd.architectures import Architecture
from edge_svd.errors import Failure, InputError
from edge_svd.factored import Factors, factored
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.registry import Registry, parametrised

NONE = "none"
"""Factors as the decomposition made them."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Patient:
    """A dense model and the calibration text that its factored form may be fitted to.

    model: a transformers decoder, fp32, untouched by healing. windows: int64 [count, length]. seed: of everything that
    draws.
    """

    model: Any
    architecture: Architecture
    windows: torch.Tensor
    seed: int = 0


class Healing(Protocol):
    """Factors of some of a model's matrices → better ones of the same ranks."""

    def __call__(self, patient: Patient, factors: Mapping[str, Factors], progress: Progress) -> dict[str, Factors]: ...


HEALINGS: Registry[Callable[..., Healing]] = Registry("way of healing")
"""Dataclasses whose fields are the parameters."""


def healing(text: str) -> list[tuple[str, Healing]]:
    """The steps of `refit+distil:steps=300`, each under its name; none for `none`.

    Raises InputError that lists the known names or parameters, or says which value is out of range.
    """
    parts = [part.strip() for part in text.split("+")]
    if parts == [NONE]:
        return []
    if not all(parts):
        raise InputError(f"{text!r} names no way of healing; known: {', '.join([NONE, *HEALINGS.names])}, joined by +.")
    return [(part, parametrised(HEALINGS, part)) for part in parts]


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
