"""A model larger than its memory: calibrated, planned and compressed under a limit, killed half-way, resumed.

    python benchmarks/streaming.py [--gigabytes 2.5] [--limit 1.5] [--dtype float32] [--folder DIR]

Makes a random llama of that many gigabytes of weights (many thin layers) in DIR, and runs `edge-svd calibrate`, `plan`
and `compress` on it in processes whose private writable memory may grow by `--limit` gigabytes from where they have
loaded their libraries (RLIMIT_DATA). Then does calibration and compression once more, each killed by SIGKILL at about
half of its files, started again, and compared byte by byte. Prints each step's time and peak; the results go to
benchmarks/results/streaming-DATE.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
WINDOWS, WINDOW = 4, 64
HIDDEN, INNER = 512, 2048
CANDIDATES = "int8,int16"
"""Priced in seconds; factored candidates would take as many SVDs as there are matrices."""
CHILD = "EDGE_SVD_LIMITED_CHILD"


def field(name: str, process: str = "self") -> int:
    """A size of /proc/PROCESS/status in bytes."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def child(limit: int, arguments: list[str]) -> None:
    """The command line with its libraries loaded, under the limit."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import edge_svd.fit  # noqa: F401  # everything that the steps import later
    from edge_svd.cli import main

    start = field("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (start + limit, start + limit))
    Path(os.environ[CHILD]).write_text(str(start))
    sys.argv = ["edge-svd", *arguments]
    main()


def make(folder: Path, gigabytes: float, dtype: str) -> None:
    """A random llama, layer by layer into files of about a gigabyte."""
    import torch
    from safetensors.torch import save_file

    from tests.tiny_folder import tiny_folder

    size = {"float32": 4, "bfloat16": 2}[dtype]
    layer = 4 * HIDDEN**2 + 3 * HIDDEN * INNER
    count = round(gigabytes * 1e9 / size / layer)
    shape = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 8, "head_dim": 64}
    tiny_folder(folder, num_hidden_layers=1, num_key_value_heads=8, **shape)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as handle:
        first = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    (folder / "model.safetensors").unlink()
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    waiting = {name: tensor.to(getattr(torch, dtype)) for name, tensor in first.items() if ".layers." not in name}

    def flush() -> None:
        file = f"model-{len(set(where.values())):05d}.safetensors"
        save_file(waiting, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(waiting, file))
        waiting.clear()

    for number in range(count):
        for name, tensor in first.items():
            if ".layers.0." in name:
                made = tensor.clone()
                if tensor.dim() == 2:
                    made = torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5
                    # Many layers add up: what each adds is small, so that the states stay of one size.
                    made *= count**-0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                waiting[name.replace(".layers.0.", f".layers.{number}.")] = made.to(getattr(torch, dtype))
        if sum(tensor.nbytes for tensor in waiting.values()) > 1e9:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Runs:
    """Runs of the command line under a limit."""

    def __init__(self, limit: int, cache: Path) -> None:
        self.limit, self.cache = limit, cache
        self.steps: list[dict[str, Any]] = []

    def run(self, name: str, arguments: list[str], kill_at: tuple[Path, int] | None = None) -> None:
        """`kill_at`: a folder, and the number of files below it with which the process is killed."""
        started = self.cache / "started.txt"
        environment = os.environ | {"EDGE_SVD_CACHE": str(self.cache), CHILD: str(started)}
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(self.limit), *arguments], env=environment, stdout=sys.stderr
        )
        most = anonymous = 0
        killed = False
        while process.poll() is None:
            try:
                most = max(most, field("VmData", str(process.pid)))
                anonymous = max(anonymous, field("RssAnon", str(process.pid)))
            except (OSError, TypeError):
                pass
            if kill_at is not None and sum(1 for file in kill_at[0].rglob("*") if file.is_file()) >= kill_at[1]:
                process.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(0.02)
        if process.returncode != 0 and not killed:
            sys.exit(f"{name} ended with {process.returncode}")
        start = int(started.read_text())
        row = {"step": name, "killed": killed, "seconds": round(time.monotonic() - begin, 1)}
        row |= {"start_mb": start // 10**6, "grown_mb": (most - start) // 10**6, "anonymous_mb": anonymous // 10**6}
        self.steps.append(row)
        print(json.dumps(row), flush=True)


def digest(folder: Path) -> dict[str, str]:
    """File → sha256."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as handle:
            found[str(file.relative_to(folder))] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def different(folder: Path, expected: dict[str, str]) -> list[str]:
    """The files that are other ones than expected, or too many, or missing."""
    found = digest(folder)
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3:])
        return
    from edge_svd.files import atomic_write, canonical_json
    from edge_svd.report.machine import describe, today
    from tests.tiny_folder import tiny_text

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--limit", type=float, default=1.5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model, text = folder / "model", folder / "text.txt"
        make(model, options.gigabytes, options.dtype)
        text.write_text(tiny_text(2000))
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
        print(f"{weights / 1e9:.2f} GB of {options.dtype} in {layers} layers, limit {options.limit} GB", flush=True)
        runs = Runs(int(options.limit * 1e9), folder)
        size = str(int(weights / (4 if options.dtype == "float32" else 2) * 1.2))
        calibrating = ["calibrate", str(model), "--calibration", str(text)]
        calibrating += ["--calibration-windows", str(WINDOWS), "--calibration-window", str(WINDOW), "-o"]
        runs.run("calibrate", [*calibrating, str(folder / "stats")])
        statistics = digest(folder / "stats")
        plan = ["plan", str(model), "--stats", str(folder / "stats"), "--size", size, "-o", str(folder / "plan.json")]
        plan += ["--candidates", CANDIDATES]
        runs.run("plan", plan)
        compressing = ["compress", str(model), "--plan", str(folder / "plan.json")]
        compressing += ["--stats", str(folder / "stats"), "-o"]
        runs.run("compress", [*compressing, str(folder / "checkpoint")])
        checkpoint = digest(folder / "checkpoint")
        shutil.rmtree(folder / "checkpoint")
        again = folder / "again"
        runs.run("calibrate", [*calibrating, str(again)], kill_at=(again, 3 * layers // 2))
        runs.run("calibrate", [*calibrating, str(again)])
        statistics_differ = different(again, statistics)
        out = folder / "twice"
        runs.run("compress", [*compressing, str(out)], kill_at=(folder / "twice.partial", layers // 2))
        runs.run("compress", [*compressing, str(out)])
        result = {
            "weights_bytes": weights,
            "layers": layers,
            "dtype": options.dtype,
            "limit_bytes": runs.limit,
            "steps": runs.steps,
            "different_after_kill": [*statistics_differ, *different(out, checkpoint)],
            "machine": describe(),
            "date": today(),
        }
    file = HERE / "results" / f"streaming-{today()}.json"
    atomic_write(file, canonical_json(result))
    print("different after kills:", ", ".join(result["different_after_kill"]) or "nothing")
    print(file)


if __name__ == "__main__":
    main()
