"""The command line: one function a command, each calls one public function.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_svd import __version__
from edge_svd.cli_options import (
    MAX_SEED,
    Allocation,
    Candidates,
    Chunk,
    Context,
    Device,
    Force,
    Json,
    KvCache,
    Lookup,
    Method,
    MinDecode,
    MinPrefill,
    Ram,
    Rotate,
    Seed,
    Sources,
    Threads,
    Window,
    Windows,
)
from edge_svd.command_line import Output, deciding_target, run_app, workstation

app = typer.Typer(
    name="edge-svd",
    help="Give it a language model and the memory of a device; it hands back the best model that fits.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-svd {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
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
    if options.encoder:
        from edge_svd.fit_encoder import fit_encoder
        from edge_svd.report.encoder_summary import encoder_summary

        made = fit_encoder(
            options.model,
            options.out,
            options.targets,
            options.calibration,
            options.planning,
            force=force,
            threads=threads,
        )
        return Output(json).result(made.to_json(), lambda: encoder_summary(made))
    from edge_svd.fit import fit as run_fit

    result = run_fit(
        options.model,
        options.out,
        options.targets,
        options.calibration,
        options.planning,
        force=force,
        threads=threads,
    )
    from edge_svd.report.fit_summary import fit_summary

    Output(json).result(result.to_json(), lambda: fit_summary(result))
    return result.require_memory()


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")],
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


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")],
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


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")],
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


@app.command()
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


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="A bundle, or a model.")],
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text file, plain or .gz.")],
    window: Annotated[
        int | None, typer.Option("--window", min=2, help="Tokens a window (512); of an encoder's passage at most.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, help="Windows from the start (64); lines of an encoder's text.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Dense model for KL(reference || target), or the cosine to it.")
    ] = None,
    threads: Threads = 2,
    json: Json = False,
) -> None:
    """Perplexity on a text, and KL to a reference model; of an encoder, the cosine to the reference on every line."""
    from edge_svd.report.figures import score_line
    from edge_svd.runtime.commands import is_encoder

    if is_encoder(target):
        workstation()
        from edge_svd.evaluate.cosine import evaluate_encoder
        from edge_svd.report.encoder_summary import cosine_line

        found = evaluate_encoder(
            target, text, reference=reference, longest=window, count=windows, threads=threads
        ).to_json()
        return Output(json).result(found, lambda: cosine_line(found))
    window, windows = window or 512, windows or 64

    if deciding_target(target) and reference is None:
        from edge_svd.runtime.commands import evaluate as run_evaluate

        score = run_evaluate(target, text, window=window, windows=windows, threads=threads)
        result: dict[str, Any] = {"perplexity": score.perplexity, "nll": score.nll, "tokens": score.tokens}
    else:
        workstation()
        from edge_svd.evaluate.targets import evaluate_target

        result = evaluate_target(
            target, text, window=window, windows=windows, reference=reference, threads=threads
        ).to_json()
    return Output(json).result(result, lambda: score_line(result))


@app.command()
def front(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")],
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


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue, or the question with --chat.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    seed: Seed = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    context: Context = None,
    threads: Threads = 2,
    lookup: Lookup = True,
    json: Json = False,
) -> None:
    """Continue a prompt, streaming; the bundle of a sentence encoder prints the prompt's embedding as JSON."""
    from edge_svd.runtime.commands import embed, is_encoder
    from edge_svd.runtime.commands import run as run_bundle

    if is_encoder(bundle) and not chat:
        return Output(True).result({"embedding": embed(bundle, prompt, threads=threads)}, str)
    pieces = run_bundle(
        bundle,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        context=context,
        threads=threads,
        lookup=lookup,
        template=chat,
    )
    return Output(json).stream(pieces)


@app.command()
def chat(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    seed: Seed = 0,
    context: Context = None,
    threads: Threads = 2,
    lookup: Lookup = True,
    json: Json = False,
) -> None:
    """Converse with the model in its own chat template; one line of stdin is one message."""
    from edge_svd.runtime.commands import Conversation

    conversation = Conversation(
        bundle,
        system=system,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        context=context,
        threads=threads,
        lookup=lookup,
    )
    Output(json).converse(lambda message: conversation.reply(message, max_new_tokens=max_new_tokens))


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 512,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1)] = 128,
    threads: Threads = 2,
    context: Context = None,
    prompt_chunk: Chunk = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Measure this device instead, and write its profile here.")
    ] = None,
    json: Json = False,
) -> None:
    """Prefill and decode speed, load time and peak memory, in a fresh process; or a profile of this device."""
    if profile is not None:
        from edge_svd.runtime.profile import write_profile

        write_profile(bundle, profile, threads=threads)
        return Output(json).result({"profile": str(profile)}, lambda: f"{profile}: use it with --device {profile}")
    from edge_svd.report.figures import bench_lines
    from edge_svd.runtime.bench import bench as run_bench
    from edge_svd.runtime.session import DEFAULT_CHUNK

    result = run_bench(
        bundle,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=threads,
        context=context,
        chunk=prompt_chunk or DEFAULT_CHUNK,
    )
    return Output(json).result(result, lambda: bench_lines(result))


@app.command()
def inspect(target: Annotated[Path, typer.Argument(help="Bundle folder or plan file.")], json: Json = False) -> None:
    """What is in a bundle or a plan."""
    from edge_svd.report.inspection import inspection, inspection_text

    found = inspection(target)
    Output(json).result(found, lambda: inspection_text(found))


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")], json: Json = False) -> None:
    """Check every file of a bundle against its manifest; exit 1 with the first fault."""
    from edge_svd.runtime.bundle import verify as run_verify
    from edge_svd.runtime.errors import BundleError, Failure

    try:
        report = run_verify(bundle)
    except BundleError as error:
        raise Failure(str(error)) from None
    Output(json).result(report, lambda: f"{bundle}: sound")


@app.command()
def methods(json: Json = False) -> None:
    """Decompositions and rank allocations, by name."""
    workstation()
    from edge_svd.report.listing import method_list, method_text

    found = method_list()
    Output(json).result(found, lambda: method_text(found))


@app.command()
def devices(json: Json = False) -> None:
    """Device profiles that come with the package: memory, bandwidth, and whether anything was measured there."""
    from edge_svd.report.device_list import device_list, device_text

    found = device_list()
    Output(json).result(found, lambda: device_text(found))


@app.command()
def recipes(json: Json = False) -> None:
    """Named sets of options for `fit --recipe`."""
    from edge_svd.report.listing import recipe_list, recipe_text

    found = recipe_list()
    Output(json).result(found, lambda: recipe_text(found))


def main() -> None:
    """Entry point of the `edge-svd` command."""
    run_app(app)


if __name__ == "__main__":
    main()
