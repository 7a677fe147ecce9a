"""Why targets cannot be met: the smallest reachable value, what dominates it, and the option that would help most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_svd.errors import BudgetError
from edge_svd.files import format_size
from edge_svd.layouts import labels
from edge_svd.planner.limits import FILE, LOADING, MEMORY, PROMPT
from edge_svd.planner.memory import Memory
from edge_svd.planner.plan import Plan
from edge_svd.planner.speed import other_seconds
from edge_svd.planner.targets import Setting, Targets

SHORTEST_CONTEXT, SMALLEST_CHUNK = 64, 32


def out_of_reach(limit: str, plan: Plan, targets: Targets, setting: Setting, together: bool) -> BudgetError:
    """The refusal for one limit; `plan` takes the least of it, `together` says that the others are met too."""
    if limit == FILE:
        return _size(plan, targets, together)
    if limit == PROMPT:
        return _prompts(plan, targets, setting, together)
    return (
        _memory(plan, targets, setting, together)
        if limit in (MEMORY, LOADING)
        else _speed(plan, targets, setting, together)
    )


def _others(targets: Targets, own: str, together: bool) -> str:
    """The other targets, where they are what makes this one unreachable."""
    return f" together with {targets.words(without=own)}" if together else ""


def _size(plan: Plan, targets: Targets, together: bool) -> BudgetError:
    parts: dict[str, int] = {}
    kinds = labels(plan.sites)
    for name, choice in plan.sites.items():
        parts[kinds[name]] = parts.get(kinds[name], 0) + choice.bytes
    parts["everything but weights"] = plan.file_bytes - sum(parts.values())
    dominant = max(parts, key=lambda part: parts[part])
    others = _others(targets, "file_bytes", together)
    return BudgetError(
        f"A bundle of {format_size(targets.file_bytes or 0)}{others} cannot be reached: the smallest possible is "
        f"{plan.file_bytes} bytes ({format_size(plan.file_bytes)}), of which {dominant} takes "
        f"{format_size(parts[dominant])}; allow at least that.",
        smallest=plan.file_bytes,
        dominant=dominant,
    )


def _memory(plan: Plan, targets: Targets, setting: Setting, together: bool) -> BudgetError:
    wanted, memory = targets.peak_rss_bytes or 0, Memory(plan.memory)
    ranked = sorted(memory.parts, key=lambda part: -memory.parts[part])
    said = [f"the {part} takes {format_size(memory.parts[part])}" for part in ranked[:1]]
    said += [f"the {part} {format_size(memory.parts[part])}" for part in ranked[1:3]]
    others = _others(targets, "peak_rss_bytes", together)
    advice = memory_advice(plan, wanted, setting)
    return BudgetError(
        f"A peak of {format_size(wanted)} of memory at a context of {setting.load.context} tokens{others} cannot be "
        f"reached: the smallest possible is {memory.total} bytes ({format_size(memory.total)}), of which "
        f"{', '.join(said)}; allow at least that{advice}.",
        smallest=memory.total,
        dominant=memory.dominant,
    )


def memory_advice(plan: Plan, wanted: int, setting: Setting) -> str:
    """The one option that would help most, with its effect; a context is cut no further than the target asks for."""
    load, now = setting.load, plan.peak_rss_bytes
    options: list[tuple[int, str]] = []

    def saved(**change: Any) -> int:
        return now - replace(setting, load=replace(load, **change)).memory(plan.formats).total

    context = load.context // 2
    while context >= SHORTEST_CONTEXT:
        saving = saved(context=context)
        last = context // 2 < SHORTEST_CONTEXT
        if now - saving <= wanted or last or context * 4 <= load.context:
            options.append((saving, f"--context {context}"))
            break
        context //= 2
    if load.chunk > SMALLEST_CHUNK:
        options.append((saved(chunk=SMALLEST_CHUNK), f"--prompt-chunk {SMALLEST_CHUNK}"))
    if load.kv_cache != "int8":
        options.append((saved(kv_cache="int8"), "--kv-cache int8"))
    best = max(options, default=(0, ""))
    return f"; {best[1]} would save {format_size(best[0])}" if best[0] > 0 else ""


def _speed(plan: Plan, targets: Targets, setting: Setting, together: bool) -> BudgetError:
    total = setting.seconds(plan.formats)
    other = other_seconds(setting.architecture, setting.profile, setting.speed_context)
    parts = {"matrix products": total - other, "attention and what surrounds the products": other}
    dominant = max(parts, key=lambda part: parts[part])
    others = _others(targets, "decode_tokens_per_s", together)
    fastest = int(plan.decode_tokens_per_s)
    need = "loosen the other targets" if together else f"ask for at most {fastest} tokens/s, or name a faster --device"
    return BudgetError(
        f"Decoding {targets.decode_tokens_per_s:g} tokens/s{others} cannot be reached on {setting.profile.name}: the "
        f"fastest possible is {plan.decode_tokens_per_s:.1f} tokens/s, where {dominant} take "
        f"{1e3 * parts[dominant]:.2f} of {1e3 * total:.2f} ms a token; {need}.",
        smallest=fastest,
        dominant=dominant,
    )


def _prompts(plan: Plan, targets: Targets, setting: Setting, together: bool) -> BudgetError:
    fastest = int(plan.prefill_tokens_per_s or 0)
    others = _others(targets, "prefill_tokens_per_s", together)
    need = "loosen the other targets" if together else f"ask for at most {fastest} tokens/s"
    speed = setting.profile.speed
    around = 0.0 if speed is None else setting.architecture.num_layers * speed.prompt_layer_s
    share = around * (plan.prefill_tokens_per_s or 0.0)
    dominant = "attention and what surrounds the products" if share > 0.5 else "matrix products"
    return BudgetError(
        f"Prompts at {targets.prefill_tokens_per_s:g} tokens/s{others} cannot be reached on {setting.profile.name}: "
        f"the fastest possible are {fastest} tokens/s, {max(share, 1 - share):.0%} of the time for {dominant}; {need}, "
        "or let --rotate make whole prompts in int8 accurate.",
        smallest=fastest,
        dominant=dominant,
    )
