"""What a decomposition may know of one matrix, and the checks of what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from edge_svd.decompose.factorization import Matrix, as_matrix
from edge_svd.decompose.whitening import Metric
from edge_svd.errors import Failure, InputError


class Measured(Protocol):
    """Statistics of W [m, n], y = W x, L the summed loss; None where they were not taken.

    c_in: [n, n] E[x xᵀ], tokens weighted as calibration weighs them; c_out: [m, m] E[g gᵀ], the metric of the output.
    moment: [n, n] E[x xᵀ] of all tokens alike; magnitude: [n] E|x|. gradient: [m, n] ∂L/∂W a token; fisher: [m] row
    sums of E[(∂L/∂W)²], a window a sample. A metric may be given as a `Whitening` that siblings share.
    """

    @property
    def c_in(self) -> Metric | None: ...

    @property
    def c_out(self) -> Metric | None: ...

    @property
    def moment(self) -> Metric | None: ...

    @property
    def magnitude(self) -> Matrix | None: ...

    @property
    def fisher(self) -> Matrix | None: ...


@dataclass(frozen=True)
class Metrics:
    """Statistics at hand; see `Measured`. Where only one second moment of the input is known, it serves as both."""

    c_in: Metric | None = None
    c_out: Metric | None = None
    plain: Metric | None = None
    magnitude: Matrix | None = None
    fisher: Matrix | None = None

    @property
    def moment(self) -> Metric | None:
        """[n, n] E[x xᵀ]."""
        return self.c_in if self.plain is None else self.plain


def required(metric: Metric | None, name: str, method: str) -> Metric:
    """The metric; InputError where a method was not given one that it needs."""
    if metric is None:
        raise InputError(f"The method {method} needs {name}, and none was given.")
    return metric


def weights_of(vector: Matrix | None, width: int, name: str, method: str) -> torch.Tensor:
    """A statistic [width] that scales rows or columns, float64; Failure where it is negative or not finite, InputError
    where it is missing or of another width."""
    if vector is None:
        raise InputError(f"The method {method} needs {name}, and none was given.")
    found = as_matrix(torch.as_tensor(vector)[None], name)[0]
    if len(found) != width:
        raise InputError(f"The statistic {name} has {len(found)} entries and the matrix {width}.")
    if bool((found < 0).any()):
        raise Failure(f"The statistic {name} of the decomposition holds negative values.")
    return found


def scaling(weights: torch.Tensor) -> torch.Tensor:
    """Positive diagonal weights from such a statistic: zeros, which cannot be undone, become a millionth of the largest
    (all ones where everything is zero)."""
    largest = float(weights.max())
    return weights.clamp_min(1e-6 * largest) if largest > 0 else torch.ones_like(weights)
