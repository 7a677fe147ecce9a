"""Which matrices shall become one product, where memory or time is limited.

What fusing saves belongs to several matrices at once, which no cost of a single candidate tells. At the prices of the
limits that a solution without it has, every set of matrices that read one input can be weighed by itself: the best
formats of one kernel, less the launches that they save, against the best formats of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_svd.architectures import Site
from edge_svd.fusing import Kernel, kernel, siblings_of
from edge_svd.planner.draft import Draft
from edge_svd.planner.knapsack.one_limit import Solution
from edge_svd.planner.limits import FILE, LOADING, MEMORY, TIME, Limit
from edge_svd.planner.targets import Setting

MERGED_GRAPH_BYTES = 1400
"""What two graphs have less of where a matrix is computed in the product of another one: matters in small bundles."""


@dataclass(frozen=True)
class Problem:
    """What the solver is asked: by matrix the candidates left, their costs under every limit, their scores."""

    left: tuple[tuple[int, ...], ...]
    costs: tuple[tuple[tuple[int, ...], ...], ...]
    scores: tuple[tuple[float, ...], ...]

    def choice(self, picked: Sequence[int]) -> tuple[int, ...]:
        """A solution's choice among all candidates."""
        return tuple(own[i] for own, i in zip(self.left, picked, strict=True))

    def spent(self, solution: Solution) -> list[int]:
        """Its cost under every limit."""
        return [sum(own[i] for own, i in zip(limit, solution.choice, strict=True)) for limit in self.costs]

    def least(self, limit: int) -> list[int]:
        """The choice that costs least under one limit."""
        return [min(range(len(own)), key=lambda i: (own[i], i)) for own in self.costs[limit]]

    def only(self, kept: Callable[[int, int], bool]) -> Problem:
        """With the candidates for which `kept(matrix, candidate)` holds, by number; all where a matrix has none."""
        held = [[k for k, i in enumerate(own) if kept(at, i)] or range(len(own)) for at, own in enumerate(self.left)]
        return Problem(
            tuple(tuple(own[k] for k in ks) for own, ks in zip(self.left, held, strict=True)),
            tuple(
                tuple(tuple(own[k] for k in ks) for own, ks in zip(limit, held, strict=True)) for limit in self.costs
            ),
            tuple(tuple(own[k] for k in ks) for own, ks in zip(self.scores, held, strict=True)),
        )


def whole(limits: Sequence[Limit], scores: Sequence[Sequence[float]]) -> Problem:
    """All candidates, fusing not counted."""
    left = tuple(tuple(range(len(own))) for own in scores)
    return Problem(left, tuple(limit.costs for limit in limits), tuple(tuple(own) for own in scores))


def merged(draft: Draft, limits: Sequence[Limit], problem: Problem, prices: Sequence[float]) -> Problem:
    """`problem` with the candidates of matrices that shall be fused limited to one kernel, each with its share of what
    that saves; prices: what a unit of every limit is worth in the unit of the scores."""
    place = {name: i for i, name in enumerate(draft.names)}
    left, scores = list(problem.left), list(problem.scores)
    costs = [list(limit) for limit in problem.costs]
    for siblings in siblings_of(draft.setting.architecture):
        at = [place[site.name] for site in siblings]
        count = len(siblings)
        saved = [_saved(limit.name, draft.setting) * (count - 1) for limit in limits]
        priced = [
            [s + sum(p * limit[i][k] for p, limit in zip(prices, costs, strict=True)) for k, s in enumerate(scores[i])]
            for i in at
        ]
        kernels = _common(draft, siblings, [left[i] for i in at])
        worth = sum(price * off for price, off in zip(prices, saved, strict=True))
        best = (
            min(
                (sum(min(own[k] for k in kept) for own, kept in zip(priced, members, strict=True)) - worth, members)
                for members in kernels.values()
            )
            if kernels
            else None
        )
        if best is None or best[0] >= sum(min(own) for own in priced):
            continue
        for i, kept in zip(at, best[1], strict=True):
            left[i] = tuple(problem.left[i][k] for k in kept)
            scores[i] = tuple(problem.scores[i][k] for k in kept)
            for limit, off in zip(costs, saved, strict=True):
                limit[i] = tuple(max(limit[i][k] - off // count, 0) for k in kept)
    return Problem(tuple(left), tuple(tuple(limit) for limit in costs), tuple(scores))


def _common(draft: Draft, siblings: Sequence[Site], left: Sequence[Sequence[int]]) -> dict[Kernel, list[list[int]]]:
    """Kernels that all of them have candidates of; where those stand among the candidates left."""
    found: dict[Kernel, list[list[int]]] = {}
    for number, (site, own) in enumerate(zip(siblings, left, strict=True)):
        for k, i in enumerate(own):
            made = kernel(site, draft.survey.candidates[site.name][i].format)
            if made is not None:
                found.setdefault(made, [[] for _ in siblings])[number].append(k)
    return {made: members for made, members in found.items() if all(members)}


def _saved(limit: str, setting: Setting) -> int:
    """What a matrix in the product of another one saves of a limit."""
    if limit == TIME:
        return setting.merged_nanoseconds
    if limit == FILE:
        return MERGED_GRAPH_BYTES
    return setting.profile.memory.product_bytes if limit in (MEMORY, LOADING) else 0
