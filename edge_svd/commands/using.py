"""Commands that run what was made: text, conversations, perplexity, questions with choices, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_svd.commands.options import BundleFolder, Chunk, Context, Json, Lookup, Seed, Temperature, Threads, TopP
from edge_svd.commands.output import Output, deciding_target, workstation


def run(
    bundle: BundleFolder,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue, or the question with --chat.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
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


def chat(
    bundle: BundleFolder,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
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


def tasks(
    target: Annotated[str, typer.Argument(help="A bundle, the folder of a compressed checkpoint, or a model.")],
    data: Annotated[
        Path, typer.Option("--data", help="JSONL file of items, plain or .gz: id, context, choices and gold a line.")
    ],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Take so many items, evenly spread over the file: always the same ones. Default: all.",
        ),
    ] = None,
    threads: Threads = 2,
    json: Json = False,
) -> None:
    """Accuracy on multiple-choice items, as lm-eval scores them, with standard errors."""
    from edge_svd.progress import step
    from edge_svd.report.figures import task_line

    bundle = deciding_target(target)
    if not bundle:
        workstation()
    with step("Answering") as tick:
        if bundle:
            from edge_svd.runtime.commands import evaluate_tasks as answer

            result = answer(target, data, limit=limit, threads=threads, progress=tick).to_json()
        else:
            from edge_svd.evaluate.tasks import evaluate_tasks

            result = evaluate_tasks(target, data, limit=limit, threads=threads, progress=tick).to_json()
    return Output(json).result(result, lambda: task_line(result))


def bench(
    bundle: BundleFolder,
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
