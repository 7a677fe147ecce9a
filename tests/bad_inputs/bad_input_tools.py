"""What the steps of a fit wrote, and the fit that the tests ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import Outcome, edge_svd

SIZE = 190_000
WINDOWS = ("--calibration-windows", "8", "--calibration-window", "64")


@dataclass(frozen=True)
class Made:
    """What the steps of a fit write, each from the one before."""

    model: Path
    text: Path
    stats: Path
    plan: Path
    checkpoint: Path
    bundle: Path
    answers: dict[str, Any]

    @property
    def calibration(self) -> tuple[str, ...]:
        return ("--calibration", str(self.text), *WINDOWS)


def fit(made: Made, out: Path, *arguments: Any, model: Any = None, size: Any = SIZE) -> Outcome:
    chosen = made.model if model is None else model
    return edge_svd("fit", chosen, "-o", out, f"--size={size}", *made.calibration, *arguments)
