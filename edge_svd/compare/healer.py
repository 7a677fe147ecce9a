"""Healing of a comparison's factors, and the text for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from edge_svd.calibrate.run import split
from edge_svd.calibrate.statistics import Statistics
from edge_svd.factored import Factors
from edge_svd.heal import Patient, heal
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.progress import step


class Healer:
    """Heals factors on text that is taken when something is healed for the first time."""

    def __init__(self, opened: OpenedModel, statistics: Statistics, windows: Callable[[], torch.Tensor] | None) -> None:
        self.opened, self.statistics, self.windows = opened, statistics, windows
        self._made: tuple[Patient, HeldOutKl] | None = None

    def __call__(self, name: str, factors: dict[str, Factors], title: str) -> tuple[dict[str, Factors], list[Any]]:
        """Healed factors, and what every step cost and gained."""
        if self._made is None:
            assert self.windows is not None
            model, architecture = self.opened.model, self.opened.architecture
            windows = self.windows().to(model.device)
            seen, held = split(len(windows))
            patient = Patient(model, architecture, windows[seen], int(self.statistics.key["seed"]))
            self._made = patient, HeldOutKl(model, windows[held], architecture)
        patient, meter = self._made
        with step(f"Healing {title}") as tick:
            found = heal(name, patient, _on(factors, patient.model.device), meter, tick)
        return _on(found.factors, "cpu"), found.steps


def _on(factors: Mapping[str, Factors], device: torch.device | str) -> dict[str, Factors]:
    return {name: (b.to(device), a.to(device)) for name, (b, a) in factors.items()}
