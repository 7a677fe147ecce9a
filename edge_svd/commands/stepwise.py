"""The steps of a fit as commands of their own, each resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge_svd.commands.options import (
    Allocation,
    Candidates,
    Chunk,
    Context,
    Device,
    Force,
    Json,
    KvCache,
    Method,
    MinDecode,
    MinPrefill,
    Model,
    Ram,
    Rotate,
    Seed,
    Sources,
)
from edge_svd.commands.output import Output, workstation


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The statistics folder to write.")],
    calibration: Sources = None,
    calibration_windows: Annotated[
        int | None, typer.Option("--calibration-windows", min=1, help="Calibration windows (128), or passages (1024).")
    ] = None,
    calibration_window: Annotated[
        int | None, typer.Option("--calibration-window", min=2, help="Tokens a window (512), or a passage (128).")
    ] = None,
    seed: Seed = 0,
    rotate: Rotate = False,
    json: Json = False,
) -> None:
    """Run text through the model once and keep the second moments that planning needs."""
    workstation()
    from edge_svd.opening import open_any
    from edge_svd.steps import run_calibration, usual_calibration

    usual = usual_calibration(model)
    options = replace(
        usual,
        sources=tuple(calibration or usual.sources),
        windows=calibration_windows or usual.windows,
        window=calibration_window or usual.window,
        seed=seed,
    )
    statistics, _ = run_calibration(open_any(model, rotate), options, out)
    result = {"statistics": str(out), "tokens": statistics.tokens, "key": dict(statistics.key)}
    Output(json).result(result, lambda: f"{out}: statistics of {statistics.tokens} tokens")


def plan(
    model: Model,
    stats: Annotated[Path, typer.Option("--stats", help="Statistics folder of `edge-svd calibrate`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The plan file to write.")],
    size: Annotated[str | None, typer.Option("--size", help="Largest size of the bundle.")] = None,
    ram: Ram = None,
    prompt_chunk: Chunk = None,
    kv_cache: KvCache = None,
    min_decode_tps: MinDecode = None,
    min_prefill_tps: MinPrefill = None,
    device: Device = None,
    method: Method = "io-svd",
    allocation: Allocation = "second-order",
    candidates: Candidates = None,
    context: Context = None,
    seed: Seed = 0,
    rotate: Rotate = False,
    json: Json = False,
) -> None:
    """Choose a format for every matrix so that the bundle meets its targets: size, memory, speed."""
    workstation()
    from edge_svd.calibrate.statistics import Statistics
    from edge_svd.files import atomic_write
    from edge_svd.fit_options import targets_of
    from edge_svd.opening import open_any
    from edge_svd.planner.plan import refuse_foreign
    from edge_svd.report.plan_table import plan_table
    from edge_svd.steps import Planning, run_plan, run_survey

    speeds = {"min_decode_tps": min_decode_tps, "min_prefill_tps": min_prefill_tps}
    targets = targets_of({"size": size, "ram": ram, "device": device, **speeds})
    options = Planning(method, allocation, candidates, context, seed)
    options = replace(options, prompt_chunk=prompt_chunk or options.prompt_chunk, device=device or options.device)
    options = replace(options, resident=targets.resident, kv_cache=kv_cache or options.kv_cache)
    refuse_foreign(out)
    statistics = Statistics.open(stats)
    options.check()
    opened = open_any(model, rotate)
    made = run_plan(opened, statistics, run_survey(opened, statistics, options), options, targets)
    atomic_write(out, made.to_bytes())
    Output(json).result({"path": str(out), "plan": made.to_json()}, lambda: plan_table(made.to_json()))


def compress(
    model: Model,
    plan: Annotated[Path, typer.Option("--plan", help="Plan file of `edge-svd plan`.")],
    stats: Annotated[Path, typer.Option("--stats", help="The statistics that the plan was made from.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The checkpoint folder to write.")],
    rotate: Rotate = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Carry out a plan: write the checkpoint with the rounded numbers that ship."""
    workstation()
    from edge_svd.calibrate.statistics import Statistics
    from edge_svd.compress import compress as run_compress
    from edge_svd.opening import open_any
    from edge_svd.planner.plan import Plan
    from edge_svd.progress import step
    from edge_svd.steps import check_plan

    chosen, statistics = Plan.read(plan), Statistics.open(stats)
    opened = open_any(model, rotate)
    check_plan(opened, chosen)
    with step("Compressing") as tick:
        checkpoint = run_compress(opened, chosen, statistics, out, force=force, progress=tick)
    result = {"checkpoint": str(out), "predicted": {"file_bytes": chosen.file_bytes, "kl": chosen.kl}}
    Output(json).result(result, lambda: f"{out}: {len(checkpoint.formats)} matrices")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder of `edge-svd compress`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle folder to write.")],
    context: Context = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a checkpoint into an ONNX bundle."""
    workstation()
    from edge_svd.checkpoint import Checkpoint
    from edge_svd.export.bundle import export_bundle
    from edge_svd.progress import step
    from edge_svd.runtime.bundle import open_bundle

    planned = context if context is not None else Checkpoint.open(checkpoint).plan.get("context")
    with step("Exporting") as tick:
        export_bundle(
            checkpoint, out, context=planned, force=force, progress=lambda _, share: tick(int(100 * share), 100)
        )
    size = open_bundle(out).file_bytes
    Output(json).result({"bundle": str(out), "file_bytes": size}, lambda: f"{out}: {size} bytes")
