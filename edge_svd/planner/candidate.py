"""The planner's currency: what one way of storing a matrix costs and what it loses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_svd.errors import Failure
from edge_svd.formats import SiteFormat


@dataclass(frozen=True)
class Candidate:
    """One format for one matrix.

    Attributes:
        format: how the matrix would lie in the files.
        bytes: its weight bytes on disk.
        loss: predicted increase of KL(dense ‖ compressed), nats per token.
        score: what the allocation strategy minimises; the loss itself unless the strategy prices differently.
    """

    format: SiteFormat
    bytes: int
    loss: float
    score: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loss) and math.isfinite(self.score)):
            raise Failure(f"The predicted loss of a {self.format.kind} candidate is not finite.")
