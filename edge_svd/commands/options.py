"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_SEED = 2**32 - 1

Model = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or smollm2-demo.")]
BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output of ours that exists.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of onnxruntime.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)]
Lookup = Annotated[
    bool, typer.Option("--lookup/--no-lookup", help="Guess repetitions and have them confirmed in one pass: faster.")
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        help="Text file, .jsonl of prompts, hub:DATASET or self; SRC:WEIGHT; repeatable. Default: self.",
    ),
]
Curvature = Annotated[
    str, typer.Option("--curvature", help="How the output metric is estimated: sampled:N draws, or top-k:K tokens.")
]
Windows = Annotated[int, typer.Option("--calibration-windows", min=1, help="Calibration windows.")]
Window = Annotated[int, typer.Option("--calibration-window", min=2, help="Tokens a calibration window.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything that draws.")]
Method = Annotated[str, typer.Option("--method", help="Decomposition; see `edge-svd methods`.")]
Allocation = Annotated[str, typer.Option("--allocation", help="Rank allocation; see `edge-svd methods`.")]
Candidates = Annotated[str | None, typer.Option("--candidates", help="Limit the planner, e.g. low-rank,int8,fp16.")]
Context = Annotated[
    int | None, typer.Option("--context", min=2, help="KV-cache positions. Default: min(2048, the model's).")
]
Ram = Annotated[
    str | None, typer.Option("--ram", help="Largest peak of resident memory, with the context full: 300MB.")
]
Chunk = Annotated[int | None, typer.Option("--prompt-chunk", min=1, help="Prompt tokens a pass (128).")]
KvCache = Annotated[
    str | None,
    typer.Option("--kv-cache", help="float32, int8, or auto (int8 where --ram makes it worth while)."),
]
MinDecode = Annotated[
    float | None, typer.Option("--min-decode-tps", help="Least decoding speed on the device, tokens a second.")
]
MinPrefill = Annotated[
    float | None, typer.Option("--min-prefill-tps", help="Least speed of a prompt on the device, tokens a second.")
]
Rotate = Annotated[
    bool, typer.Option("--rotate", help="Rotate the model first: int8 products of whole prompts become accurate.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device profile, by name or as FILE.toml; see `edge-svd devices`."),
]
