"""What a comparison is asked for: methods x allocations x ratios x ways of healing, on texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_svd.allocate import allocation
from edge_svd.calibrate.statistics import extras_of
from edge_svd.decompose import decompose
from edge_svd.errors import InputError
from edge_svd.heal import NONE, healing


@dataclass(frozen=True)
class Cell:
    """One way of making a model smaller, in the names of the command line; ratio: share of the parameters kept of the
    matrices between embedding and head; heal_windows: calibration text that healing sees."""

    method: str
    allocation: str
    ratio: float
    heal: str = NONE
    heal_windows: int = 0

    @property
    def names(self) -> dict[str, str | float]:
        """What tells its rows from others."""
        names = {"method": self.method, "allocation": self.allocation, "ratio": self.ratio, "heal": self.heal}
        return names if self.heal == NONE else names | {"heal_windows": self.heal_windows}


@dataclass(frozen=True)
class Asked:
    """Methods x allocations x ratios x healing x texts; windows of the texts, and of the text to heal on."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    ratios: tuple[float, ...]
    texts: tuple[Path, ...]
    window: int = 512
    windows: int = 24
    heals: tuple[str, ...] = (NONE,)
    heal_windows: int = 128

    def check(self) -> None:
        """InputError on an unknown name, a ratio outside (0, 1], or nothing to compare; before any work is done."""
        for name, found in (("method", self.methods), ("ratio", self.ratios), ("text", self.texts)):
            if not found:
                raise InputError(f"There is no {name} to compare; name at least one.")
        for method in self.methods:
            decompose(method)
        for name in self.allocations:
            allocation(name)
        for heal in self.heals:
            healing(heal)
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise InputError(f"The ratio of parameters kept must be above 0 and at most 1, not {ratio:g}.")

    @property
    def extras(self) -> set[str]:
        """The statistics that its methods and allocations look at beyond the moments, which weigh all tokens alike."""
        needs = {need for method in self.methods for need in decompose(method).needs}
        needs |= {need for name in self.allocations for need in allocation(name).needs}
        return extras_of(needs - {"moment"})

    def __iter__(self) -> Iterator[Cell]:
        return iter(
            Cell(m, a, r, h, self.heal_windows)
            for m in self.methods
            for a in self.allocations
            for r in self.ratios
            for h in self.heals
        )
