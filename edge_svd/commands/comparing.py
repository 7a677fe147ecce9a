"""The command that puts published methods side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge_svd.commands.options import Curvature, Force, Json, Model, Seed, Sources, Window, Windows
from edge_svd.commands.output import Output, workstation


def compare(
    model: Model,
    methods: Annotated[str, typer.Option("--methods", help="Decompositions, with commas; NAME:PARAMETER=VALUE.")],
    ratios: Annotated[
        str, typer.Option("--ratios", help="Shares of the linears' parameters to keep, fp32 factors: 0.8,0.6.")
    ] = "",
    sizes: Annotated[
        str, typer.Option("--sizes", help="Bytes of the whole folder, rounded as it ships: 110MB,90MB.")
    ] = "",
    over_dense: Annotated[
        str,
        typer.Option(
            "--over-dense",
            help="Perplexity over the dense model's, on held-out calibration text, at which as few parameters as "
            "possible are kept: 1.2,1.5.",
        ),
    ] = "",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Text to measure on, plain or .gz; repeatable.")
    ] = None,
    task: Annotated[
        list[Path] | None,
        typer.Option("--task", help="JSONL file of multiple-choice items, plain or .gz; repeatable."),
    ] = None,
    task_limit: Annotated[
        int, typer.Option("--task-limit", min=1, help="Items of a task, evenly spread over the file.")
    ] = 200,
    allocations: Annotated[str, typer.Option("--allocations", help="Rank allocations, with commas.")] = "uniform",
    candidates: Annotated[
        str | None,
        typer.Option("--candidates", help="What plans for --sizes choose from. Default: low-rank,int8."),
    ] = None,
    factors: Annotated[
        str,
        typer.Option(
            "--factors",
            help="How factors are stored, with commas: plain, two of them; pivoted, rows of the matrix and the "
            "coefficients of its others, k² numbers fewer for a rank of k.",
        ),
    ] = "plain",
    heal: Annotated[
        str, typer.Option("--heal", help="What is done to the factors then, with commas: none, refit, refit+distil.")
    ] = "none",
    heal_windows: Annotated[
        int | None, typer.Option("--heal-windows", min=1, help="Windows to heal on. Default: those of calibration.")
    ] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens a window.")] = 512,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows from the start of a text.")] = 24,
    calibration: Sources = None,
    calibration_windows: Windows = 128,
    calibration_window: Window = 512,
    curvature: Curvature = "sampled:1",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for compare.json and index.html.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Published methods at equal parameters or equal bytes: perplexity, KL to the dense model, accuracy on tasks."""
    workstation()
    from edge_svd.compare.asked import CANDIDATES, Asked
    from edge_svd.compare.folder import refuse_other, write_folder
    from edge_svd.compare.run import compare as run_compare
    from edge_svd.errors import InputError
    from edge_svd.fit_options import names_of, ratios_of, sizes_of
    from edge_svd.models import open_model
    from edge_svd.report.compare_table import compare_table
    from edge_svd.steps import Calibration, estimator_of, healing_text, run_calibration

    counted = heal_windows or calibration_windows
    asked = Asked(
        names_of(methods),
        names_of(allocations),
        ratios_of(ratios),
        tuple(text or ()),
        window,
        windows,
        names_of(heal),
        counted,
        sizes_of(sizes),
        CANDIDATES if candidates is None else candidates,
        tuple(task or ()),
        task_limit,
        ratios_of(over_dense, "--over-dense", "1.2,1.5"),
        names_of(factors),
    )
    asked.check()
    if candidates is not None and not asked.sizes:
        raise InputError("--candidates says what plans for --sizes choose from; give sizes, or leave it out.")
    sources = tuple(calibration or ("self",))
    # Published methods weigh all tokens alike. So does what is good here: where much is cut off, the directions of the
    # few massive activations, to which the output hardly reacts as long as they stay, must be kept.
    # In fp32 everywhere, so that rows agree between processors.
    estimator = replace(estimator_of(curvature), weighted=False, precision="float32")
    settings = Calibration(sources, calibration_windows, calibration_window, seed, estimator)
    if out is not None:
        refuse_other(out, force)
    opened = open_model(model)
    statistics, _ = run_calibration(opened, settings, extras=asked.extras)
    found = run_compare(opened, statistics, asked, healing_text(opened, replace(settings, windows=counted)))
    if out is not None:
        write_folder(out, found)
    Output(json).result(found, lambda: compare_table(found, out))
