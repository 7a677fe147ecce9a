"""`second-order-measured`: predicted KL per byte, corrected by what truncating each type of matrix really costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field
from edge_svd.allocate.strategy import ALLOCATIONS, Scores

RANGE = (0.5, 30.0)
"""Of measured over predicted loss, as the planner trusts it too."""


class SecondOrderMeasured(ByKl):
    """As `second-order`, then again with every type's prices multiplied by √(measured over predicted KL).

    Measured with all matrices of the type as `second-order` cuts them, on held-out windows of the calibration. The
    whole factor would be right where the type is cut as it was measured, and goes too far where the new choice cuts it
    otherwise. Prices of a plan of bytes are corrected by measurements of the planner's own, so there this is
    `second-order`.
    """

    rule = None
    measures = "type"

    def repriced(self, field: Field, choice: Sequence[int]) -> Scores | None:
        if field.truncated is None:
            return None
        factors = {}
        for kind in dict.fromkeys(field.types):
            losses = [loss[j] for of, loss, j in zip(field.types, field.loss, choice, strict=True) if of == kind]
            predicted = float(sum(losses))
            ratio = field.truncated(choice, kind) / predicted if predicted > 0 else 1.0
            factors[kind] = math.sqrt(min(max(ratio, RANGE[0]), RANGE[1]))
        return [score * factors[kind] for kind, score in zip(field.types, field.score, strict=True)]


ALLOCATIONS.register("second-order-measured")(SecondOrderMeasured())
