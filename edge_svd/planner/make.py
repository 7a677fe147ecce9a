"""A plan for a size budget: solve, count the exact bytes of the bundle that would follow, correct, solve again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge_svd.allocate import allocation
from edge_svd.errors import BudgetError
from edge_svd.files import format_size
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.plan import Choice, Plan
from edge_svd.planner.same_ratio import solve_same_ratio
from edge_svd.planner.solver import Solution, solve
from edge_svd.planner.survey import Survey

ROUNDS = 6
CLOSE = 2e-5
"""A plan this close below the target is not worth another round."""

SizeOf = Callable[[Plan], Mapping[str, int]]
"""Exact bytes of every file of the bundle that a plan leads to."""


def make_plan(
    survey: Survey, source: Mapping[str, str], *, target_bytes: int, context: int, seed: int, size_of: SizeOf
) -> Plan:
    """The best plan whose bundle is at most `target_bytes`.

    What the weights may take is the target less everything else in the folder (graphs, tokenizer, manifest), which
    depends a little on the plan itself; a few rounds settle it.

    Raises:
        BudgetError: no plan is small enough; names the smallest reachable size and what dominates it.
    """
    names = [site.name for site in survey.sites]
    candidates = [survey.candidates[name] for name in names]
    sizes = [[c.bytes for c in found] for found in candidates]

    def plan_of(solution: Solution, target: int = target_bytes) -> Plan:
        picked = [found[i] for found, i in zip(candidates, solution.choice, strict=True)]
        return sized(_plan(survey, source, names, picked, solution, target, context, seed), size_of)

    def outside(choice: list[int]) -> int:
        """Bytes of the bundle that are not weights."""
        picked = [found[i] for found, i in zip(candidates, choice, strict=True)]
        plan = _plan(survey, source, names, picked, _fixed(sizes, candidates, choice), target_bytes, context, seed)
        return sum(size_of(plan).values()) - sum(c.bytes for c in picked)

    least = [min(range(len(c)), key=lambda i: (c[i], i)) for c in sizes]
    smallest = plan_of(_fixed(sizes, candidates, least))
    if smallest.file_bytes > target_bytes:
        # The target stands in the manifest too: name a size that succeeds when it is asked for.
        for _ in range(4):
            smallest = plan_of(_fixed(sizes, candidates, least), smallest.file_bytes)
        raise _unreachable(smallest, target_bytes, size_of)
    graph = _graph_bytes(candidates, least, outside)
    costs = [[c.bytes + graph[c.format.kind] for c in found] for found in candidates]
    best = smallest
    low, high = 0, 2 * target_bytes  # budgets whose plans turned out to fit, and not to fit
    budget = sum(c[i] for c, i in zip(costs, least, strict=True)) + target_bytes - smallest.file_bytes
    for _ in range(ROUNDS):
        solution = _solve(survey, candidates, costs, budget)
        plan = smallest if solution is None else plan_of(solution)
        spare = target_bytes - plan.file_bytes
        if spare >= 0 and _price(plan, survey) < _price(best, survey):
            best = plan
        low, high = (budget, high) if spare >= 0 else (low, budget)
        spent = budget if solution is None else solution.cost
        guess = spent + spare
        if high - low <= 1 or guess == budget or 0 <= spare <= CLOSE * target_bytes:
            break
        budget = guess if low < guess < high else (low + high) // 2
    return best


def _graph_bytes(
    candidates: list[tuple[Candidate, ...]], least: list[int], outside: Callable[[list[int]], int]
) -> dict[str, int]:
    """What one more matrix of each kind adds to the graphs, manifest and alignment, against a matrix in int8.

    Little for a large matrix, and a tenth of a small one.
    """
    kinds = sorted({c.format.kind for found in candidates for c in found})

    def all_of(kind: str) -> tuple[list[int], int]:
        choice, count = [], 0
        for found, fallback in zip(candidates, least, strict=True):
            own = [i for i, c in enumerate(found) if c.format.kind == kind]
            narrow = [i for i, c in enumerate(found) if c.format.kind == "int8"]
            choice.append((own or narrow or [fallback])[0])
            count += bool(own)
        return choice, count

    base = outside(all_of("int8")[0])
    others = {kind: all_of(kind) for kind in kinds if kind != "int8"}
    return {"int8": 0} | {kind: round((outside(choice) - base) / count) for kind, (choice, count) in others.items()}


def _solve(
    survey: Survey, candidates: list[tuple[Candidate, ...]], costs: list[list[int]], budget: int
) -> Solution | None:
    if allocation(survey.allocation).same_ratio:
        return solve_same_ratio(survey.sites, candidates, budget)
    return solve(costs, [[c.score for c in found] for found in candidates], budget)


def _fixed(costs: list[list[int]], candidates: list[tuple[Candidate, ...]], choice: list[int]) -> Solution:
    score = sum(found[i].score for found, i in zip(candidates, choice, strict=True))
    return Solution(tuple(choice), sum(c[i] for c, i in zip(costs, choice, strict=True)), score, score)


def _price(plan: Plan, survey: Survey) -> float:
    return sum(
        next(c.score for c in survey.candidates[name] if c.format == choice.format)
        for name, choice in plan.sites.items()
    )


def _plan(
    survey: Survey,
    source: Mapping[str, str],
    names: list[str],
    picked: list[Candidate],
    solution: Solution,
    target_bytes: int,
    context: int,
    seed: int,
) -> Plan:
    return Plan(
        source=source,
        method=survey.method,
        allocation=survey.allocation,
        candidates=survey.kinds,
        seed=seed,
        context=context,
        target_bytes=target_bytes,
        file_bytes=target_bytes,
        kl=sum(c.loss for c in picked),
        bound=solution.bound,
        gap=solution.gap,
        sites={name: Choice(c.format, c.bytes, c.loss) for name, c in zip(names, picked, strict=True)},
    )


def sized(plan: Plan, size_of: SizeOf) -> Plan:
    """The plan with its exact file_bytes; the number lies in the manifest, so its digits are settled by repetition."""
    for _ in range(4):
        total = sum(size_of(plan).values())
        if total == plan.file_bytes:
            break
        plan = Plan(**{**plan.__dict__, "file_bytes": total})
    return plan


def _unreachable(smallest: Plan, target_bytes: int, size_of: SizeOf) -> BudgetError:
    parts: dict[str, int] = {}
    for name, choice in smallest.sites.items():
        kind = name.rsplit(".", 1)[-1]
        parts[kind] = parts.get(kind, 0) + choice.bytes
    others = {name: size for name, size in size_of(smallest).items() if name != "model.onnx.data"}
    parts |= {f"the file {name}": size for name, size in others.items()}
    dominant = max(parts, key=lambda part: parts[part])
    return BudgetError(
        f"A bundle of {format_size(target_bytes)} cannot be reached: the smallest possible is "
        f"{smallest.file_bytes} bytes ({format_size(smallest.file_bytes)}), of which {dominant} takes "
        f"{format_size(parts[dominant])}; allow at least that.",
        smallest=smallest.file_bytes,
        dominant=dominant,
    )
