"""Running a bundle's graphs by hand, the plain way and with one buffer for past and present."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_svd.architectures import Architecture


def open_session(bundle: Path, name: str = "model_scoring.onnx") -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(bundle / name, options, providers=["CPUExecutionProvider"])


def empty_cache(a: Architecture, batch: int = 1, length: int = 0, dtype: Any = np.float32) -> list[np.ndarray]:
    return [np.zeros((batch, a.num_kv_heads, length, a.head_dim), dtype) for _ in range(2 * a.num_layers)]


def cache_names(a: Architecture, prefix: str) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(a.num_layers) for part in ("key", "value")]


def step(
    session: Any, a: Architecture, tokens: np.ndarray, cache: list[np.ndarray], mask: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One call with separate buffers: (logits, present)."""
    batch, count = tokens.shape
    past = cache[0].shape[2]
    mask = np.ones((batch, past + count), np.int64) if mask is None else mask
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, past:]
    feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    feeds |= dict(zip(cache_names(a, "past_key_values"), cache, strict=True))
    logits, *present = session.run(["logits", *cache_names(a, "present")], feeds)
    return logits, present


class SharedBuffer:
    """Past and present bound to the same capacity-sized arrays."""

    def __init__(self, session: Any, a: Architecture, capacity: int, dtype: Any = np.float32) -> None:
        self.session, self.a, self.length = session, a, 0
        self.arrays = empty_cache(a, 1, capacity, dtype)
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        count = tokens.shape[1]
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length + count), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(self.length, self.length + count, dtype=np.int64)[None])
        binding.bind_output("logits", "cpu")
        for past, present, value in zip(
            cache_names(self.a, "past_key_values"), cache_names(self.a, "present"), self.values, strict=True
        ):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        self.session.run_with_iobinding(binding)
        self.length += count
        return binding.get_outputs()[0].numpy()
