"""How planning grows with the model: candidate tables and solver on Llama-2-shaped lists of matrices, no weights.

    python benchmarks/planner_scale.py

Losses are synthetic (spectra that fall off like powers, each matrix its own); shapes, formats, bytes, resident bytes
and times are real. Every size is solved for bytes alone, then for bytes, memory and speed together. Prints a table and
writes benchmarks/results/planner-scale-DATE.json.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.devices import DEFAULT, load_profile
from edge_svd.files import atomic_write
from edge_svd.formats import ALIGNMENT, SiteFormat, weight_bytes
from edge_svd.planner.knapsack.several_limits import solve_several
from edge_svd.planner.memory import Load
from edge_svd.planner.targets import Setting
from edge_svd.report.machine import describe, today

RESULTS = Path(__file__).parent / "results"
SHARES, TIGHTER = (0.5, 0.7), 0.99
RANKS = 45
"""Ranks a matrix and kind of factors; large models have no use for steps of 16."""

SMOL = {
    "family": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position": 8192,
    "norm_eps": 1e-5,
    "activation": "silu",
    "attention_scale": 0.125,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "embedding_multiplier": 1.0,
    "qk_norm": "",
    "fused_qkv": False,
    "fused_gate_up": False,
    "tied_embeddings": True,
    "layer_windows": (0,) * 30,
    "layer_ropes": ("global",) * 30,
    "rotary_dim": 64,
    "rope_scale": 1.0,
    "bos_token_id": 1,
    "eos_token_ids": (2,),
}


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int) -> Architecture:
    """A model of the Llama-2 kind."""
    smol = Architecture(**SMOL)  # type: ignore[arg-type]
    return dataclasses.replace(
        smol,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        rotary_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
        layer_windows=(0,) * layers,
        layer_ropes=("global",) * layers,
    )


MODELS = {
    "SmolLM2-135M": Architecture(**SMOL),  # type: ignore[arg-type]
    "Llama-2-7B": llama(32, 4096, 11008, 32, 32),
    "Llama-2-13B": llama(40, 5120, 13824, 40, 40),
    "Llama-2-70B": llama(80, 8192, 28672, 64, 8),
}


def candidates(site: Site, rng: np.random.Generator) -> list[tuple[SiteFormat, float]]:
    """Formats of one matrix and their losses."""
    scale, power = 10 ** rng.uniform(-4, -2), rng.uniform(0.6, 1.4)
    found = [(SiteFormat("int8"), 1e-3 * scale), (SiteFormat("int16"), 1e-6 * scale)]
    if site.type in ("embedding", "lm_head"):
        return found
    full = min(site.shape)
    for rank in sorted({max(ALIGNMENT, int(full * step / RANKS) // ALIGNMENT * ALIGNMENT) for step in range(1, RANKS)}):
        lost = scale * ((full / rank) ** power - 1)
        found.append((SiteFormat("column-pivoted", rank), 1.2 * lost + 2e-3 * scale))
        if weight_bytes(site.shape, SiteFormat("low-rank", rank)) < weight_bytes(site.shape, SiteFormat("int8")):
            found.append((SiteFormat("low-rank", rank), lost + 2e-3 * scale))
            found.append((SiteFormat("low-rank", rank, ALIGNMENT), lost + 1.5e-3 * scale))
    return found


def measure(name: str, architecture: Architecture) -> dict[str, object]:
    """Seconds for the tables and for each solution."""
    rng = np.random.default_rng(0)
    setting = Setting(architecture, load_profile(DEFAULT), Load(2048, 128, 2_000_000))
    sites = [site for site in sites_of(architecture) if not site.tied_to]
    started = time.perf_counter()
    table = [candidates(site, rng) for site in sites]
    scores = [[loss for _, loss in own] for own in table]
    costs = [
        [[weight_bytes(site.shape, fmt) for fmt, _ in own] for site, own in zip(sites, table, strict=True)],
        [[setting.resident_bytes(site.name, fmt) for fmt, _ in own] for site, own in zip(sites, table, strict=True)],
        [[setting.nanoseconds(site.name, fmt) for fmt, _ in own] for site, own in zip(sites, table, strict=True)],
    ]
    tables = time.perf_counter() - started
    whole = sum(own[0] for own in costs[0])  # everything in int8
    row: dict[str, object] = {"model": name, "matrices": len(sites), "candidates": sum(map(len, table))}
    row["tables_s"] = tables
    slowest = gap = 0.0
    for share in SHARES:
        budgets = [int(share * whole)]
        for limits in (1, 3):
            started = time.perf_counter()
            found = solve_several(costs[:limits], scores, budgets)
            seconds = time.perf_counter() - started
            if found is None:
                raise SystemExit(f"{name} has no plan at {share}")
            key = f"solve_{limits}_s"
            row[key] = max(float(row.get(key, 0.0)), seconds)  # type: ignore[arg-type]
            slowest, gap = max(slowest, seconds), max(gap, found.gap)
            # A little less memory and time than the best plan for the size takes: all three limits bind.
            budgets += [
                int(TIGHTER * sum(own[i] for own, i in zip(limit, found.choice, strict=True))) for limit in costs[1:]
            ]
    return row | {"total_s": tables + slowest, "gap": gap}


def main() -> None:
    rows = []
    for name, architecture in MODELS.items():
        row = measure(name, architecture)
        rows.append(row)
        print(
            f"{name:<14}{row['matrices']:>5} matrices {row['candidates']:>6} candidates  tables {row['tables_s']:.2f} s"
            f"  size alone {row['solve_1_s']:.2f} s  size, memory and speed {row['solve_3_s']:.2f} s"
            f"  gap {row['gap']:.3%}",
            flush=True,
        )
    report = {"date": today(), "machine": describe(), "rows": rows}
    atomic_write(RESULTS / f"planner-scale-{today()}.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
