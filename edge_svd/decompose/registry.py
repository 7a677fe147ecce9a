"""The decompositions by name, and what each of them takes and gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol, cast

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.metrics import Measured
from edge_svd.errors import InputError
from edge_svd.registry import Registry


class Decomposition(Protocol):
    """w: [m, n], numpy or torch, any float type, and its statistics → factors with w = b @ a, best components first.

    The work is done in float64 on the CPU. `needs` are the statistics that it reads beyond `c_in` and `c_out`, which
    calibration always takes. Raises Failure where an argument holds NaN or infinity (naming it), InputError where
    shapes do not fit or a statistic is missing.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, w: Matrix, site: Measured) -> Factorization: ...


DECOMPOSITIONS: Registry[Callable[..., Decomposition]] = Registry("decomposition method")
"""Dataclasses whose fields are the parameters of the method."""


def decompose(name: str, **parameters: float) -> Decomposition:
    """The decomposition of that name, or `NAME:PARAMETER=VALUE,…`: `asvd:alpha=0.3`.

    Raises InputError that lists the known names or parameters, or says which value is out of range.
    """
    name, _, given = name.partition(":")
    method = DECOMPOSITIONS[name]
    known = [field.name for field in fields(cast(Any, method))]
    asked = dict(parameters)
    for part in given.split(",") if given else ():
        key, _, value = part.partition("=")
        try:
            asked[key.strip()] = float(value)
        except ValueError:
            raise InputError(f"{part!r} is no parameter of a method; write {name}:PARAMETER=VALUE.") from None
    for key, number in asked.items():
        if key not in known:
            has = f"known: {', '.join(known)}" if known else "it has none"
            raise InputError(f"The method {name} has no parameter {key!r}; {has}.")
        if not math.isfinite(number):
            raise InputError(f"The parameter {key} of {name} must be a finite number, not {number}.")
    return method(**asked)


def within(value: float, low: float, high: float, name: str) -> None:
    """Raises InputError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        limit = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise InputError(f"The {name} must be {limit}, not {value}.")
