"""Commands that make bundles in one go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge_svd.commands.options import (
    MAX_SEED,
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
    Threads,
    Window,
    Windows,
)
from edge_svd.commands.output import Output, workstation


def fit(
    model: Annotated[str | None, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The bundle folder to write.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Largest size of the bundle: 64MB, 64MiB, 0.5GB or bytes.")
    ] = None,
    ram: Ram = None,
    prompt_chunk: Chunk = None,
    kv_cache: KvCache = None,
    min_decode_tps: MinDecode = None,
    min_prefill_tps: MinPrefill = None,
    device: Device = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Named options; see `edge-svd recipes`.")] = None,
    calibration: Sources = None,
    calibration_windows: Annotated[
        int | None, typer.Option("--calibration-windows", min=1, help="Calibration windows (128).")
    ] = None,
    calibration_window: Annotated[
        int | None, typer.Option("--calibration-window", min=2, help="Tokens a window (512).")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Decomposition (io-svd).")] = None,
    allocation: Annotated[str | None, typer.Option("--allocation", help="Rank allocation (second-order).")] = None,
    candidates: Candidates = None,
    context: Context = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything that draws (0).")
    ] = None,
    tune: Annotated[
        float | None, typer.Option("--tune", help="Minutes of distillation of the stored scales after rounding.")
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Measure the plan's choices, correct their prices, and plan again.")
    ] = False,
    rotate: Rotate = False,
    force: Force = False,
    threads: Threads = 2,
    json: Json = False,
) -> None:
    """Calibrate, plan, compress, export and prove: a model and budgets in, a running bundle out."""
    workstation()
    from edge_svd.fit_options import resolve

    given = {
        "model": model,
        "size": size,
        "ram": ram,
        "prompt_chunk": prompt_chunk,
        "kv_cache": kv_cache,
        "min_decode_tps": min_decode_tps,
        "min_prefill_tps": min_prefill_tps,
        "device": device,
        "calibration": tuple(calibration) if calibration else None,
        "calibration_windows": calibration_windows,
        "calibration_window": calibration_window,
        "method": method,
        "allocation": allocation,
        "candidates": candidates,
        "context": context,
        "seed": seed,
        "tune": tune,
        "refine": refine or None,
        "rotate": rotate or None,
    }
    options = resolve(given, recipe, out)
    asked = (options.model, options.out, options.targets, options.calibration, options.planning)
    if options.encoder:
        from edge_svd.fit_encoder import fit_encoder
        from edge_svd.report.encoder_summary import encoder_summary

        made = fit_encoder(*asked, force=force, threads=threads)
        return Output(json).result(made.to_json(), lambda: encoder_summary(made))
    from edge_svd.fit import fit as run_fit

    result = run_fit(*asked, force=force, threads=threads)
    from edge_svd.report.fit_summary import fit_summary

    Output(json).result(result.to_json(), lambda: fit_summary(result))
    return result.require_memory()


def front(
    model: Model,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Sizes of the bundles, e.g. 145MB,115MB,90MB; or --rams.")
    ] = None,
    rams: Annotated[
        str | None, typer.Option("--rams", help="Peaks of memory to stay within, e.g. 400MB,300MB.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for front.json, the page and the bundles.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Build, prove and measure every point.")
    ] = True,
    text: Annotated[Path | None, typer.Option("--text", help="Text to measure perplexity on as well.")] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens a window of --text.")] = 512,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows, from the start of --text.")] = 64,
    calibration: Sources = None,
    calibration_windows: Windows = 128,
    calibration_window: Window = 512,
    method: Method = "io-svd",
    allocation: Allocation = "second-order",
    candidates: Candidates = None,
    context: Context = None,
    prompt_chunk: Chunk = None,
    kv_cache: KvCache = None,
    device: Device = None,
    seed: Seed = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Measure every point again; replace the front of another model.")
    ] = False,
    threads: Threads = 2,
    json: Json = False,
) -> None:
    """The size/quality/speed front of a model in one run: table, front.json and a page, resumable."""
    workstation()
    from edge_svd.front.run import front as run_front
    from edge_svd.front.targets import targets_from
    from edge_svd.report.front_table import front_table
    from edge_svd.steps import Calibration, Planning

    options = Planning(method, allocation, candidates, context, seed)
    options = replace(options, kv_cache=kv_cache or options.kv_cache)
    result = run_front(
        model,
        targets_from(sizes, rams),
        Calibration(tuple(calibration or ("self",)), calibration_windows, calibration_window, seed),
        replace(options, prompt_chunk=prompt_chunk or options.prompt_chunk, device=device or options.device),
        out=out,
        measure=measure,
        text=text,
        window=window,
        windows=windows,
        force=force,
        threads=threads,
    ).to_json()
    Output(json).result(result, lambda: front_table(result, out))
