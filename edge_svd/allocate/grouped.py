"""`grouped` (SVD-LLM V2, section 3.1): ratios by how much truncation costs, within every type of matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field, by_shares
from edge_svd.allocate.strategy import ALLOCATIONS

MOST_REMOVED = 0.95
"""Of one matrix: the formula may ask for more than all of it."""

WIDEST = 1e12
"""Largest loss over the least that is told apart."""


class Grouped(ByKl):
    """Within every type of matrix, remove more where truncation loses less (one over its logarithm).

    SVD-LLM V2: L_i the loss of matrix i at the target ratio, l_i = 1 / ln L_i, removed R_i = N · R · l_i / Σ l over the
    N matrices of a type. As published this is undefined for L_i ≤ 1 and may remove more than there is. Here L is
    measured in units in which the least of a type is e, so that l lies in (0, 1], and what exceeds 95% of a matrix is
    spread over the others of its type.
    """

    def rule(self, field: Field, budget: int) -> list[int] | None:
        def shares(ratio: float) -> list[float]:
            kept = [ratio] * len(field.full)
            for members in groups.values():
                losses = [float(field.loss[g][field.within(g, ratio * field.full[g])]) for g in members]
                for g, removed in zip(members, removals(losses, max(1 - ratio, 0.0)), strict=True):
                    kept[g] = 1 - removed if ratio < 1 else ratio
            return kept

        groups: dict[str, list[int]] = {}
        for g, kind in enumerate(field.types):
            groups.setdefault(kind, []).append(g)
        return by_shares(field, shares, budget)


def removals(losses: Sequence[float], removed: float) -> list[float]:
    """R_i of the matrices of one type whose losses are known, their mean `removed`."""
    least = min((loss for loss in losses if loss > 0), default=1.0)
    left = {i: 1 / math.log(math.e * min(max(loss / least, 1.0), WIDEST)) for i, loss in enumerate(losses)}
    result, total = [0.0] * len(losses), removed * len(losses)
    while left:
        whole = sum(left.values())
        over = [i for i, part in left.items() if total * part / whole > MOST_REMOVED]
        if not over:
            for i, part in left.items():
                result[i] = total * part / whole
            break
        for i in over:
            result[i] = MOST_REMOVED
            total -= MOST_REMOVED
            del left[i]
    return result


ALLOCATIONS.register("grouped")(Grouped())
