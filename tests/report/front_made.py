"""A front as a page may meet it, made up: no model is needed to look at a page."""

from __future__ import annotations

from typing import Any

TYPES = {
    "q": (64, 64),
    "k": (32, 64),
    "v": (32, 64),
    "o": (64, 64),
    "gate": (160, 64),
    "up": (160, 64),
    "down": (64, 160),
}


def matrices(layers: int) -> list[dict[str, Any]]:
    table = {"name": "model.embed_tokens", "type": "embedding", "layer": -1, "shape": [320, 64]}
    inner = [
        {"name": f"model.layers.{layer}.{kind}_proj", "type": kind, "layer": layer, "shape": list(shape)}
        for layer in range(layers)
        for kind, shape in TYPES.items()
    ]
    return [table, *inner]


def plan(layers: int, target: int, kl: float) -> dict[str, Any]:
    sites = {}
    for number, matrix in enumerate(matrices(layers)):
        size = matrix["shape"][0] * matrix["shape"][1]
        entry: dict[str, Any] = {"kind": "int8", "bytes": size, "loss": kl / 20}
        if matrix["layer"] >= 0 and number % 3:
            kind = "low-rank" if number % 3 == 1 else "row-pivoted"
            entry = {"kind": kind, "k8": 16, "k16": 0, "bytes": size // 2, "loss": kl / 20}
        sites[matrix["name"]] = entry
    return {
        "method": "io-svd",
        "allocation": "second-order",
        "predicted": {"file_bytes": target - 1, "kl": kl},
        "solver": {"bound": kl, "gap": 0.0001},
        "sites": sites,
    }


def row(label: str, target: int, kl: float, layers: int = 4, measured: bool = True) -> dict[str, Any]:
    figures = {
        "file_bytes": target - 1,
        "peak_rss_bytes": 2 * target,
        "kl": kl * 1.1,
        "decode_tokens_per_s": 1e10 / target,
    }
    return {
        "target": {"kind": "size", "value": target},
        "label": label,
        "reachable": True,
        "predicted": {"file_bytes": target - 1, "peak_rss_bytes": 3 * target, "kl": kl, "decode_tokens_per_s": 95.5},
        "measured": figures | {"perplexity": 30 * (1 + kl)} if measured else None,
        "proof": {"top1_agreement": 0.97, "kl_mean": 0.002} if measured else None,
        "bundle": f"bundles/{label}",
        "plan": plan(layers, target, kl),
    }


def made_front(layers: int = 4, measured: bool = True, name: str = "maker/tiny-model") -> dict[str, Any]:
    """Three sizes, the smallest of them not reachable, and two techniques alone."""
    small = {"kind": "size", "value": 10_000_000}
    refusal = {"message": "A bundle of 10 MB cannot be reached.", "smallest": 40_000_000, "dominant": "embedding"}
    rows = [
        {"target": small, "label": "10MB", "reachable": False, "refusal": refusal},
        row("60MB", 60_000_000, 0.8, layers, measured),
        row("100MB", 100_000_000, 0.02, layers, measured),
    ]
    targets = [entry["target"] for entry in rows]
    curves = {
        "int8": [(None, None), (None, None), (90_000_000, 0.03)],
        "low-rank": [(None, None), (59_000_000, 1.9), (99_000_000, 0.4)],
    }
    return {
        "format": "edge-svd front 1",
        "date": "2026-11-22",
        "machine": {
            "processor": "Some Processor",
            "cores": 2,
            "memory_bytes": 8_000_000_000,
            "system": "Linux",
            "versions": {"edge-svd": "0.1.0", "onnxruntime": "1.32.0"},
        },
        "threads": 2,
        "model": {"name": name, "digest": "0" * 64},
        "calibration": {"sources": ["self"], "windows": 128, "window": 512, "seed": 0},
        "inputs": {
            "method": "io-svd",
            "allocation": "second-order",
            "candidates": ["int8", "low-rank", "pivoted"],
            "context": 2048,
            "prompt_chunk": 128,
            "device": "this-machine",
        },
        "evaluation": {"file": "test.txt", "sha256": "1" * 64, "window": 512, "windows": 64} if measured else None,
        "dense": {"perplexity": 30.0} if measured else None,
        "rows": rows,
        "curves": {
            family: [
                {"target": target, "file_bytes": size, "kl": kl, "smallest": None}
                for target, (size, kl) in zip(targets, points, strict=True)
            ]
            for family, points in curves.items()
        },
        "matrices": matrices(layers),
    }
