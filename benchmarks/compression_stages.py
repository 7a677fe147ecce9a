"""The whole compression of a random llama, stage by stage, on the device that computes; `gpu.py` makes its table of it.

    python benchmarks/compression_stages.py [--layers 8 16 32] [--methods io-svd svd-llm-v2] [--folder DIR]

The shape is LLaMA-7B's, the text 256 windows of 2048 tokens; --hidden, --inner, --heads, --windows and --window make
it small enough for any machine. The model lies in bf16 in DIR, with its statistics about twice its size again. Opening
and the moments are shared by the methods; each plan is for 0.9 bytes a parameter, less than int8 takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

from edge_svd.compress import compress  # noqa: E402
from edge_svd.compute_device import compute_device  # noqa: E402
from edge_svd.models import open_model  # noqa: E402
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey  # noqa: E402
from tests.tiny_folder import tiny_folder, tiny_text  # noqa: E402

METHODS = ("io-svd", "svd-llm-v2")
CANDIDATES = "int8,low-rank"
GRAPH_BYTES = 100_000
"""What a bundle holds beside its weights, at least."""


def make(folder: Path, layers: int, hidden: int, inner: int, heads: int) -> None:
    """A random llama in bf16 with a tokenizer."""
    from transformers import LlamaForCausalLM

    tiny_folder(folder, num_hidden_layers=1)
    known = json.loads((folder / "config.json").read_text())
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads}
    shape |= {"vocab_size": max(32000, known["vocab_size"]) if hidden >= 1024 else known["vocab_size"]}
    config = LlamaForCausalLM.config_class(**known | shape | {"max_position_embeddings": 4096, "dtype": "bfloat16"})
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(compute_device()):
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.to("cpu").save_pretrained(folder, max_shard_size="2GB")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds what it took to seconds[stage], the device's work included."""
    begin = time.monotonic()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begin, 2)


def stages(
    folder: Path, layers: int, methods: tuple[str, ...], windows: int, window: int, **shape: int
) -> list[dict[str, Any]]:
    """A row for every method: seconds of opening, calibration, pricing, planning and compression, and their sum."""
    model, text, out = folder / "model", folder / "text.txt", folder / "checkpoint"
    make(model, layers, **shape)
    text.write_text(tiny_text(windows * window // 8))  # a sentence is more than eight tokens
    shared: dict[str, float] = {}
    with timed(shared, "open"):
        opened = open_model(str(model))
    calibration = Calibration((str(text),), windows=windows, window=window)
    size = int(0.9 * sum(math.prod(site.shape) for site in opened.sites if not site.tied_to)) + GRAPH_BYTES
    rows: list[dict[str, Any]] = []
    for method in methods:
        planning = Planning(method=method, candidates=CANDIDATES)
        # The moments are taken for the first method, and count for every one.
        seconds = shared | ({"calibrate": rows[0]["calibrate"]} if rows else {})
        with timed(seconds, "calibrate"):
            statistics, _ = run_calibration(opened, calibration, folder / "statistics", extras=planning.extras)
        with timed(seconds, "price"):
            prices = run_survey(opened, statistics, planning)
        with timed(seconds, "plan"):
            plan = run_plan(opened, statistics, prices, planning, size)
        with timed(seconds, "compress"):
            compress(opened, plan, statistics, out)
        shutil.rmtree(out)
        rows.append({"method": method, "layers": layers, **seconds, "total": round(sum(seconds.values()), 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    for layers in options.layers:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            os.environ["EDGE_SVD_CACHE"] = name
            shape = {"hidden": options.hidden, "inner": options.inner, "heads": options.heads}
            methods = tuple(options.methods)
            for row in stages(Path(name), layers, methods, options.windows, options.window, **shape):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
