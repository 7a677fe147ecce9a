"""`bench --profile`: what a device profile says of this machine, measured in under two minutes.

Kernels run in chains too large for the caches, each in a fresh process; a line through two sizes separates the cost of
a launch from the cost of a weight. The bundle gives the process, the session and everything between the products. Other
programs must rest meanwhile: the profile says how busy the machine was.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime.bench import fresh_process
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.graph_products import GraphProduct, graph_products, packed_blocks
from edge_svd.runtime.kernel_worker import WHOLE_PASS
from edge_svd.runtime.schema import MODEL_NAME, TOKENIZER_NAME

KERNELS = (
    (8, 16),
    (8, 32),
    (8, 64),
    (8, 128),
    (8, 256),
    (4, 16),
    (4, 32),
    (4, 64),
    (4, 128),
    (2, 32),
    (2, 64),
    (2, 128),
    (8, WHOLE_PASS),
)
"""Bits and blocks; 2 bits in blocks of 16 have no fast kernel."""

SMALL, LARGE = (576, 576), (1536, 576)
CHAIN_BYTES = 128_000_000
"""Stored numbers of a chain: a language model's weights are never in a cache, and out of one a product is up to twice
as fast."""

CHAIN_SHARE = 0.1
"""Of the free memory, on small devices; packing takes about three times as much for a moment."""

PASS = 128
"""Tokens of a pass over a prompt, as is usual."""

MOST_PAIRS = 600
SECONDS = 0.6
CONTEXT, SHORTEST_CONTEXT = 1024, 128
BANDWIDTH_BYTES = 256_000_000
ACTIVATION_BYTES = 1_500_000
"""About what a pass over 32 tokens leaves in the arena; a session's own bytes are counted without it."""

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
Progress = Callable[[int, int], None]


SCALE_BYTES = 4


def measure_profile(bundle: Path | str, *, threads: int = 2, progress: Progress = lambda done, total: None) -> str:
    """The device profile of this machine as TOML text, measured with a bundle.

    InputError if the bundle's context is too short to tell attention from the rest, Failure where a process dies or
    there is no /proc.
    """
    opened = open_bundle(bundle)
    context = min(CONTEXT, opened.manifest.decoder.max_context)
    if context < SHORTEST_CONTEXT:
        raise InputError(
            f"A profile needs a bundle with a context of at least {SHORTEST_CONTEXT} tokens, not {context}."
        )
    if not Path("/proc/self/smaps").exists():
        raise Failure("A profile can be measured on Linux only: resident memory is read from /proc.")
    chains, total = [], 2 * len(KERNELS) + 1
    for bits, block in KERNELS:
        for shape in (SMALL, LARGE):
            chains.append((bits, block, shape, _chain(bits, block, shape, threads)))
            progress(len(chains), total)
    launch, weights = _kernel_times(chains)
    prompts = {
        (bits, block): made["prompt_seconds"] / PASS / (made["products"] / 2 * _padded(shape, block)[0])
        for bits, block, shape, made in chains
        if shape == LARGE
    }
    block_bytes, product_bytes = _kernel_bytes(chains)
    request = {"bundle": str(Path(bundle).absolute()), "threads": threads, "context": context}
    found = fresh_process("profile_worker", request)
    progress(total, total)
    model = opened.manifest.decoder
    if found["scales_given_back"]:
        block_bytes = max(block_bytes - SCALE_BYTES, 0.1)  # the chains keep theirs
    products = graph_products(opened.read(MODEL_NAME))
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
    cache_s = max((found["deep_s"] - found["shallow_s"]) / ((found["deep"] - found["shallow"]) * cache), 1e-15)
    multiplying = sum(launch + p.rows * p.blocks * p.block * weights[_nearest(p, weights)] for p in products)
    layer = (found["shallow_s"] - multiplying - cache_s * cache * found["shallow"]) / model.num_layers
    inner = [p for p in products if p.rows != model.vocab_size]
    reading = sum(p.rows * p.blocks * p.block * prompts[_nearest(p, weights)] for p in inner)
    prompt_layer = (found["prompt_s"] / found["prompt"] - reading) / model.num_layers
    held = sum(
        p.rows * packed_blocks(p.blocks, p.bits) * (p.block * p.bits / 8 + block_bytes) + product_bytes
        for p in products
    )
    session = found["session_bytes"] - held - ACTIVATION_BYTES
    return _toml(
        threads,
        {
            "memory_bytes": _meminfo("MemTotal"),
            "free_bytes": _meminfo("MemAvailable"),
            "bandwidth_bytes_per_s": _bandwidth(),
        },
        {
            "process_bytes": found["process_bytes"],
            "session_bytes": max(round(session), 1),
            "tokenizer_ratio": max(found["tokenizer_bytes"], 1) / opened.manifest.files[TOKENIZER_NAME].bytes,
            "product_bytes": round(product_bytes),
            "block_bytes": block_bytes,
        },
        {
            "launch_s": launch,
            "layer_s": max(layer, 1e-9),
            "cache_byte_s": cache_s,
            "prompt_layer_s": max(prompt_layer, 1e-12),
        },
        weights,
        prompts,
    )


def write_profile(bundle: Path | str, out: Path, *, threads: int = 2) -> None:
    """Measure this device and write its profile; InputError unless `out` ends in .toml and is new or a profile."""
    if out.suffix != ".toml":
        raise InputError(f"A device profile is a .toml file; {out} is not one.")
    if out.is_dir() or (out.exists() and b"[memory]" not in out.read_bytes()):
        raise InputError(f"{out} exists and is not a device profile; choose another file.")
    text = measure_profile(bundle, threads=threads)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise Failure(f"Writing {out} failed: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _chain(bits: int, block: int, shape: tuple[int, int], threads: int) -> dict[str, Any]:
    weights = shape[0] * shape[1]
    stored = min(CHAIN_BYTES, CHAIN_SHARE * _meminfo("MemAvailable"))
    pairs = min(max(2, round(stored / (2 * weights * bits / 8))), MOST_PAIRS)
    request = {"rows": shape[0], "columns": shape[1], "bits": bits, "block": block, "pairs": pairs}
    prompt = PASS if shape == LARGE else 0
    return fresh_process("kernel_worker", request | {"threads": threads, "seconds": SECONDS, "prompt": prompt})


def _padded(shape: tuple[int, int], block: int, bits: int = 8) -> tuple[int, int]:
    """Weights with padding, and blocks, of one N x K and one K x N product; with `bits`, as a kernel packs those."""
    n, k = shape
    if block == WHOLE_PASS:
        return 2 * n * k, n + k
    blocks = n * packed_blocks(-(-k // block), bits) + k * packed_blocks(-(-n // block), bits)
    return blocks * block, blocks


def _kernel_times(
    chains: list[tuple[int, int, tuple[int, int], dict[str, Any]]],
) -> tuple[float, dict[tuple[int, int], float]]:
    """One launch time for all kernels (the median of theirs) and seconds a weight of each, given that launch."""
    launches = []
    by_kernel: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
    for bits, block, shape, found in chains:
        by_kernel.setdefault((bits, block), {})[shape] = found["seconds"] / found["products"]
    for (_, block), times in by_kernel.items():
        small, large = (_padded(shape, block)[0] / 2 for shape in (SMALL, LARGE))
        slope = (times[LARGE] - times[SMALL]) / (large - small)
        launches.append(max(times[SMALL] - slope * small, 0.0))
    launch = max(float(np.median(launches)), 1e-9)
    weights = {}
    for (bits, block), times in by_kernel.items():
        weights[bits, block] = max((times[LARGE] - launch) / (_padded(LARGE, block)[0] / 2), 1e-15)
    return launch, weights


def _kernel_bytes(chains: list[tuple[int, int, tuple[int, int], dict[str, Any]]]) -> tuple[float, float]:
    """Bytes a block and a product beyond the numbers themselves, by least squares over all chains."""
    rows, values = [], []
    for bits, block, shape, found in chains:
        weights, blocks = _padded(shape, block, bits)
        pairs = found["products"] / 2
        rows.append([pairs * blocks, found["products"], 1.0])
        values.append(found["anonymous_bytes"] - pairs * weights * bits / 8)
    block_bytes, product_bytes, _ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return max(float(block_bytes), 0.1), max(float(product_bytes), 1.0)


def _nearest(product: GraphProduct, weights: dict[tuple[int, int], float]) -> tuple[int, int]:
    if product.whole:
        return 8, WHOLE_PASS
    blocks = (key for key in weights if key[1] != WHOLE_PASS)
    return min(blocks, key=lambda key: (key[0] != product.bits, abs(np.log(key[1] / product.block))))


def _bandwidth() -> float:
    """Bytes a second that one thread reads from memory."""
    data = np.ones(BANDWIDTH_BYTES // 8)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    return BANDWIDTH_BYTES / min(times)


def _meminfo(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise Failure(f"/proc/meminfo does not say {field}, so this machine cannot be profiled.")
    return int(match.group(1)) * 1024


def _processor() -> tuple[str, list[str]]:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    return name.group(1) if name else platform.machine(), [flag for flag in _INSTRUCTIONS if flag in known]


def _toml(
    threads: int,
    device: dict[str, float],
    memory: dict[str, float],
    speed: dict[str, float],
    kernels: dict[tuple[int, int], float],
    prompts: dict[tuple[int, int], float],
) -> str:
    processor, instructions = _processor()
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    source = f"edge-svd bench --profile on {processor} with onnxruntime {onnxruntime.__version__}, {threads} threads"
    lines = [
        f"summary = {json.dumps(f'{processor}, {os.cpu_count()} cores')}",
        'basis = "measured"',
        f"sources = {json.dumps([source, busy])}",
        "",
        "[device]",
        *(f"{key} = {value:.6g}" if isinstance(value, float) else f"{key} = {value}" for key, value in device.items()),
        f"cores = {os.cpu_count()}",
        f"instruction_sets = {json.dumps(instructions or [platform.machine()])}",
        "usable_share = 1.0",
        "",
        "[memory]",
        *(f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in memory.items()),
        "",
        "[speed]",
        f"threads = {threads}",
        *(f"{key} = {value:.4g}" for key, value in speed.items()),
    ]
    for (bits, block), seconds in kernels.items():
        lines += ["", "[[speed.kernels]]", f"bits = {bits}", f"block = {block}", f"weight_s = {seconds:.4g}"]
        lines.append(f"prompt_s = {prompts[bits, block]:.4g}")
    return "\n".join(lines) + "\n"
