"""What a comparison is asked for: methods x allocations x ((ratios and targets) x ways of storing factors x healing,
and sizes), on texts and tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.allocate import allocation, lacking
from edge_svd.calibrate.statistics import extras_of
from edge_svd.compare.storage import PLAIN, check_storage
from edge_svd.decompose import decompose
from edge_svd.errors import InputError
from edge_svd.files import format_size
from edge_svd.heal import NONE, healing
from edge_svd.planner.survey import VERSION as PRICES
from edge_svd.planner.survey import candidate_kinds

CANDIDATES = "low-rank,int8"
"""What plans choose from where nothing else is named: a method's factors, and int8 rows where those are better."""

TASK_LIMIT = 200
"""Items of a task that are scored where nothing else is said."""


@dataclass(frozen=True)
class Cell:
    """One way of making a model smaller, in the names of the command line; ratio: share of the parameters kept of the
    matrices between embedding and head; heal_windows: calibration text that healing sees. Or, where there is no ratio,
    target: perplexity over the dense model's on held-out calibration text, at which as little as possible is kept; or
    size: bytes of the whole folder, planned from those candidates and rounded as it ships. storage: how factors at a
    ratio or target are kept (`compare.storage`)."""

    method: str
    allocation: str
    ratio: float | None
    heal: str = NONE
    heal_windows: int = 0
    size: int | None = None
    candidates: tuple[str, ...] = ()
    target: float | None = None
    storage: str = PLAIN

    @property
    def names(self) -> dict[str, Any]:
        """What tells its kept row from others."""
        if self.size is not None:
            plan = {"size": self.size, "candidates": list(self.candidates), "prices": PRICES}
            return {"method": self.method, "allocation": self.allocation, **plan}
        names: dict[str, Any] = {"method": self.method, "allocation": self.allocation, "heal": self.heal}
        names |= {"ratio": self.ratio} if self.target is None else {"target": self.target}
        names |= {} if self.storage == PLAIN else {"factors": self.storage}
        return names if self.heal == NONE else names | {"heal_windows": self.heal_windows}

    @property
    def fields(self) -> dict[str, Any]:
        """What tells it from others in compare.json."""
        found = {"method": self.method, "allocation": self.allocation, "ratio": self.ratio, "size": self.size}
        found |= {"target": self.target, "heal": self.heal, "factors": None if self.size is not None else self.storage}
        return found if self.heal == NONE else found | {"heal_windows": self.heal_windows}

    @property
    def title(self) -> str:
        """What progress calls it."""
        if self.size is not None:
            return f"{self.method}, {self.allocation}, {format_size(self.size)}"
        amount = f"{self.ratio:g}" if self.target is None else f"at {self.target:g} times dense"
        stored = [] if self.storage == PLAIN else [self.storage]
        return ", ".join([self.method, self.allocation, *stored, amount])


@dataclass(frozen=True)
class Asked:
    """Methods x allocations x ((ratios and targets) x storage x healing, and sizes in bytes) on texts and tasks;
    windows of the texts, and of the text to heal on; candidates of the plans for sizes, as `fit` takes them; items of a
    task that are scored."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    ratios: tuple[float, ...]
    texts: tuple[Path, ...]
    window: int = 512
    windows: int = 24
    heals: tuple[str, ...] = (NONE,)
    heal_windows: int = 128
    sizes: tuple[int, ...] = ()
    candidates: str = CANDIDATES
    tasks: tuple[Path, ...] = ()
    task_limit: int = TASK_LIMIT
    targets: tuple[float, ...] = ()
    storages: tuple[str, ...] = (PLAIN,)

    def check(self) -> None:
        """InputError on an unknown name, a ratio outside (0, 1], nothing to compare, or what plans for sizes cannot
        do; before any work is done."""
        for name, found in (
            ("method", self.methods),
            ("allocation", self.allocations),
            ("ratio, size or target", (*self.ratios, *self.sizes, *self.targets)),
            ("text or task", (*self.texts, *self.tasks)),
            ("kind of factors", self.storages),
        ):
            if not found:
                raise InputError(f"There is no {name} to compare; name at least one.")
        for method in self.methods:
            decompose(method)
        for name in self.allocations:
            beyond = allocation(name).beyond_plans
            if self.sizes and beyond:
                raise lacking(name, beyond)
        for storage in self.storages:
            check_storage(storage)
        for heal in self.heals:
            healing(heal)
            if self.sizes and heal != NONE:
                raise InputError(
                    f"Healing by {heal} works on fp32 factors, and matrices at a size are rounded as they ship; "
                    "compare it by ratio."
                )
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise InputError(f"The ratio of parameters kept must be above 0 and at most 1, not {ratio:g}.")
        for target in self.targets:
            if not (math.isfinite(target) and target > 1):
                raise InputError(f"The perplexity allowed, over the dense model's, must be above 1, not {target:g}.")
        candidate_kinds(self.candidates)

    @property
    def extras(self) -> set[str]:
        """The statistics that its methods and allocations look at beyond the moments, which weigh all tokens alike."""
        needs = {need for method in self.methods for need in decompose(method).needs}
        needs |= {need for name in self.allocations for need in allocation(name).needs}
        return extras_of(needs - {"moment"})

    def __iter__(self) -> Iterator[Cell]:
        kinds = candidate_kinds(self.candidates)
        for method in self.methods:
            for name in self.allocations:
                for storage in self.storages:
                    for ratio in self.ratios:
                        for heal in self.heals:
                            yield Cell(method, name, ratio, heal, self.heal_windows, storage=storage)
                    for target in self.targets:
                        for heal in self.heals:
                            yield Cell(method, name, None, heal, self.heal_windows, target=target, storage=storage)
                for size in self.sizes:
                    yield Cell(method, name, None, size=size, candidates=kinds)
