"""From a choice of candidates to a plan with its exact size and its predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edge_svd.architectures import Site
from edge_svd.fusing import siblings_of, together
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.knapsack.one_limit import Solution
from edge_svd.planner.plan import Choice, Plan
from edge_svd.planner.products import calls
from edge_svd.planner.survey import Survey
from edge_svd.planner.targets import Setting, Targets

TIME_WORTH = 0.25
"""Percent of the loss that a percent of the time to a token is worth, where the targets leave the choice."""

SizeOf = Callable[[Plan], Mapping[str, int]]
"""Exact bytes of every file of the bundle that a plan leads to."""


@dataclass(frozen=True)
class Draft:
    """What all plans of one call have in common. `source` names model and statistics, as in the plan."""

    survey: Survey
    source: Mapping[str, str]
    targets: Targets
    setting: Setting
    seed: int
    size_of: SizeOf
    tune_steps: int = 0

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.survey.sites]

    @property
    def candidates(self) -> list[tuple[Candidate, ...]]:
        """By matrix, in the order of `names`."""
        return [self.survey.candidates[name] for name in self.names]

    def fixed(self, choice: Sequence[int]) -> Solution:
        """A choice that nothing was minimised for."""
        picked = self.picked(choice)
        score = sum(c.score for c in picked)
        return Solution(tuple(choice), sum(c.bytes for c in picked), score, score)

    def picked(self, choice: Sequence[int]) -> list[Candidate]:
        return [found[i] for found, i in zip(self.candidates, choice, strict=True)]

    def widths(self, matrix: int, candidate: int) -> tuple[int, ...]:
        """Of what passes between the products of a matrix in one of its candidates, both by number."""
        return calls(self.survey.sites[matrix].shape, self.candidates[matrix][candidate].format).widths

    def quick(self, solution: Solution) -> Solution:
        """The same matrices in the same numbers, with as many inputs to an activation scale as is best: bytes on disk
        do not tell how far to go there, so time is traded for loss at the rate TIME_WORTH."""
        picked, setting = self.picked(solution.choice), self.setting
        loss = max(sum(c.loss for c in picked), 1e-300)
        time = 1e9 * setting.seconds({name: c.format for name, c in zip(self.names, picked, strict=True)})

        def cost(name: str, c: Candidate) -> float:
            return c.loss / loss + TIME_WORTH * setting.nanoseconds(name, c.format) / time

        same: dict[str, list[int]] = {}
        for name, found, own in zip(self.names, self.candidates, solution.choice, strict=True):
            body = found[own].format.stored
            equal = [i for i, c in enumerate(found) if c.bytes == found[own].bytes and c.format.stored == body]
            same[name] = sorted(equal, key=lambda i: (cost(name, found[i]), i))
        chosen = {name: equal[0] for name, equal in same.items()}
        saved = TIME_WORTH * setting.merged_nanoseconds / time
        for siblings in siblings_of(setting.architecture):
            chosen |= self._merged(siblings, same, cost, saved)
        choice = [chosen[name] for name in self.names]
        return replace(solution, choice=tuple(choice))

    def _merged(
        self,
        siblings: Sequence[Site],
        same: Mapping[str, Sequence[int]],
        cost: Callable[[str, Candidate], float],
        saved: float,
    ) -> dict[str, int]:
        """Candidates of matrices that read the same input, of those in `same` the ones of least total cost, where
        every matrix that shares the product of another one has `saved` off it."""
        names = [site.name for site in siblings]
        found = self.survey.candidates

        def total(picked: Sequence[int]) -> float:
            chosen = {name: found[name][i] for name, i in zip(names, picked, strict=True)}
            products = together(siblings, {name: c.format for name, c in chosen.items()})
            return sum(cost(name, c) for name, c in chosen.items()) - saved * (len(names) - len(products))

        best = min(itertools.product(*(same[name] for name in names)), key=total)
        return dict(zip(names, best, strict=True))

    def plan(self, solution: Solution) -> Plan:
        """The plan of a solution, with its exact size."""
        return sized(self._plan(solution), self.size_of)

    def file_costs(self) -> list[list[int]]:
        """Bytes that every candidate adds to the folder: its weights, and its share of the graphs and the manifest."""
        graph = self._graph_bytes()
        return [[c.bytes + graph[c.format.kind] for c in found] for found in self.candidates]

    def _plan(self, solution: Solution) -> Plan:
        picked, setting = self.picked(solution.choice), self.setting
        formats = {name: c.format for name, c in zip(self.names, picked, strict=True)}
        prefill = setting.prefill(formats)
        return Plan(
            source=self.source,
            method=self.survey.method,
            allocation=self.survey.allocation,
            candidates=self.survey.kinds,
            seed=self.seed,
            tune_steps=self.tune_steps,
            context=setting.load.context,
            prompt_chunk=setting.load.chunk,
            device=setting.profile.name,
            targets=self.targets,
            file_bytes=self.targets.file_bytes or 0,
            memory=setting.memory(formats).parts,
            decode_tokens_per_s=1 / setting.seconds(formats),
            kl=sum(c.loss for c in picked) + setting.cache_loss,
            bound=solution.bound,
            gap=solution.gap,
            sites={name: Choice(c.format, c.bytes, c.loss) for name, c in zip(self.names, picked, strict=True)},
            kv_cache=setting.load.kv_cache,
            kv_cache_loss=setting.cache_loss,
            prefill_tokens_per_s=None if prefill is None else 1 / prefill,
        )

    def _outside(self, choice: list[int]) -> int:
        """Bytes of the bundle that are not weights."""
        plan = self._plan(self.fixed(choice))
        return sum(self.size_of(plan).values()) - sum(c.bytes for c in self.picked(choice))

    def _graph_bytes(self) -> dict[str, int]:
        """What one more matrix of each kind adds to the graphs, manifest and alignment, against a matrix in int8.

        Little for a large matrix, and a tenth of a small one.
        """
        candidates = self.candidates
        kinds = sorted({c.format.kind for found in candidates for c in found})

        def all_of(kind: str) -> tuple[list[int], int]:
            choice, count = [], 0
            for found in candidates:
                own = [i for i, c in enumerate(found) if c.format.kind == kind]
                narrow = [i for i, c in enumerate(found) if c.format.kind == "int8"]
                least = min(range(len(found)), key=lambda i: (found[i].bytes, i))
                choice.append((own or narrow or [least])[0])
                count += bool(own)
            return choice, count

        base = self._outside(all_of("int8")[0])
        others = {kind: all_of(kind) for kind in kinds if kind != "int8"}
        extra = {kind: round((self._outside(choice) - base) / count) for kind, (choice, count) in others.items()}
        return {"int8": 0} | extra


def price(plan: Plan, survey: Survey) -> float:
    """What the allocation strategy minimises."""
    return sum(
        next(c.score for c in survey.candidates[name] if c.format == choice.format)
        for name, choice in plan.sites.items()
    )


def sized(plan: Plan, size_of: SizeOf) -> Plan:
    """The plan with its exact file_bytes; the number lies in the manifest, so its digits are settled by repetition."""
    for _ in range(4):
        total = sum(size_of(plan).values())
        if total == plan.file_bytes:
            break
        plan = replace(plan, file_bytes=total)
    return plan
