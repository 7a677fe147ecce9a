"""The limits of a plan as the solver sees them: whole costs of candidates, and what a finished plan really takes.

Costs add up but for a little: the graph files, buffers between products, constants that products share. What is left
over between the sum and the plan's own prediction is found out after every solution and taken off the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_svd.errors import InputError
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.plan import Plan
from edge_svd.planner.targets import Setting, Targets

Table = Sequence[Sequence[Candidate]]
"""Candidates by matrix."""

FUNCTIONS_MATTER = 5_000_000
"""A bundle below this size feels the kilobytes of a function that unpacks a code, and of every node."""

FILE, MEMORY, LOADING, TIME, PROMPT = "file", "memory", "loading", "time", "prompt"


@dataclass(frozen=True)
class Limit:
    """One limit: `costs` by matrix and candidate, `target` in the same unit, `value` of a finished plan.

    Units: bytes of the folder, resident bytes, nanoseconds a token decoded or of a prompt.
    """

    name: str
    target: int
    costs: tuple[tuple[int, ...], ...]
    value: Callable[[Plan], int]


def limits_of(
    targets: Targets,
    setting: Setting,
    names: Sequence[str],
    table: Table,
    file_costs: Callable[[], Sequence[Sequence[int]]],
) -> tuple[Limit, ...]:
    """The limits that the targets set, in the order file, memory (of a full context, then of loading), time, prompt.

    InputError for a target of prompts where the profile says nothing of them.
    """
    found = []
    if targets.file_bytes is not None:
        costs = tuple(tuple(own) for own in file_costs())
        found.append(Limit(FILE, targets.file_bytes, costs, lambda plan: plan.file_bytes))
    if targets.peak_rss_bytes is not None:
        costs = _costs(names, table, lambda name, c: setting.resident_bytes(name, c.format))
        found.append(Limit(MEMORY, targets.peak_rss_bytes, costs, lambda plan: setting.running(plan.formats)))
        costs = _costs(names, table, lambda name, c: setting.loading_bytes(name, c.format))
        found.append(Limit(LOADING, targets.peak_rss_bytes, costs, lambda plan: setting.loading(plan.formats)))
    if targets.decode_tokens_per_s is not None:
        costs = _costs(names, table, lambda name, c: setting.nanoseconds(name, c.format))
        allowed = int(1e9 / targets.decode_tokens_per_s)
        found.append(Limit(TIME, allowed, costs, lambda plan: nanoseconds(plan)))
    if targets.prefill_tokens_per_s is not None:
        speed = setting.profile.speed
        if speed is None or not speed.knows_prompts:
            raise InputError(
                f"The device profile {setting.profile.name} does not say how long prompts take; measure one that does "
                "with `edge-svd bench BUNDLE --profile OUT.toml`, and name it with --device, or leave out "
                "--min-prefill-tps."
            )
        costs = _costs(names, table, lambda name, c: setting.prompt_nanoseconds(name, c.format))
        allowed = int(1e9 / targets.prefill_tokens_per_s)
        found.append(Limit(PROMPT, allowed, costs, lambda plan: prompt_nanoseconds(plan)))
    return tuple(found)


def nanoseconds(plan: Plan) -> int:
    """Predicted time of a token, rounded up."""
    return -int(-1e9 // plan.decode_tokens_per_s)


def prompt_nanoseconds(plan: Plan) -> int:
    """Predicted time of a prompt's token, rounded up, of a plan that knows it."""
    assert plan.prefill_tokens_per_s is not None
    return -int(-1e9 // plan.prefill_tokens_per_s)


def _costs(names: Sequence[str], table: Table, cost: Callable[[str, Candidate], int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(cost(name, c) for c in own) for name, own in zip(names, table, strict=True))
