"""The proof that a bundle computes what its checkpoint computes, and a look at what the session holds in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_svd.architectures import Architecture
from edge_svd.checkpoint import Checkpoint
from edge_svd.errors import Failure, InputError
from edge_svd.export.graph import Array
from edge_svd.runtime.handed_over import CACHE_TYPES
from edge_svd.runtime.onnx_session import prepared
from edge_svd.runtime.schema import MODEL_NAME, SCORING_NAME

if TYPE_CHECKING:
    import onnxruntime

LOGITS_BYTES = 200_000_000
"""What the logits of both sides and their probabilities may take at a time."""

_COPIES = 6


@dataclass(frozen=True)
class Proof:
    """Checkpoint against bundle over `positions` teacher-forced predictions behind the prompts: share of equal most
    likely tokens, mean KL(checkpoint ‖ bundle) in nats a token, and the largest difference of two logits.

    `prompt_kl_mean` is the KL inside the prompts (None without): the first tokens of a text have nothing before them,
    and what they predict hangs by a thread that any rounding moves.
    """

    top1_agreement: float
    kl_mean: float
    max_abs_error: float
    positions: int
    prompt_kl_mean: float | None = None


def prove(
    checkpoint: Path,
    bundle_dir: Path,
    token_windows: Sequence[Sequence[int]],
    *,
    prompt: int = 0,
    model: Any = None,
    threads: int = 2,
) -> Proof:
    """Teacher-forced comparison over windows of token ids, in pieces through the caches of both sides.

    The first `prompt` tokens of a window are its prompt, whose own predictions are counted apart. `model` is the
    checkpoint as a torch model, if it is loaded already. Raises InputError without tokens, Failure if a logit is not
    finite.
    """
    windows = [np.asarray(window, np.int64)[None] for window in token_windows if len(window) > prompt]
    if not windows:
        raise InputError("A proof needs at least one window of tokens longer than its prompt.")
    if model is None:
        import edge_svd

        model = edge_svd.load(checkpoint)
    a = Checkpoint.open(checkpoint).architecture
    if not isinstance(a, Architecture):
        raise InputError(f"The checkpoint {checkpoint} is an encoder's, whose proof compares embeddings.")
    session = _session(Path(bundle_dir) / SCORING_NAME, threads)
    piece = max(1, LOGITS_BYTES // (4 * _COPIES * a.vocab_size))
    agreed, error, positions = 0, 0.0, 0
    kl, prompt_kl = 0.0, 0.0
    for window in windows:
        left, right = (
            _torch_logits(model, window, piece),
            _bundle_logits(session, a.num_layers, (a.num_kv_heads, a.head_dim), window, piece),
        )
        waiting = prompt
        for expected, found in zip(left, right, strict=True):
            if not (np.isfinite(expected).all() and np.isfinite(found).all()):
                raise Failure(f"The proof of {bundle_dir} found a logit that is not finite.")
            error = max(error, float(np.abs(expected - found).max()))
            own = min(waiting, len(expected))
            waiting -= own
            prompt_kl += _kl_sum(expected[:own], found[:own])
            expected, found = expected[own:], found[own:]
            agreed += int((expected.argmax(-1) == found.argmax(-1)).sum())
            kl += _kl_sum(expected, found)
            positions += len(expected)
    inside = prompt_kl / (prompt * len(windows)) if prompt else None
    return Proof(agreed / positions, kl / positions, error, positions, inside)


def inspect_session(bundle_dir: Path, name: str = MODEL_NAME) -> list[tuple[str, str, int]]:
    """(name, dtype, bytes) of every initializer that the optimised session holds, largest first.

    onnxruntime writes the optimised graph into a temporary folder: for a moment this needs disk space for the weights.
    """
    import onnx
    import onnx_ir as ir
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = _options(1)
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        model, _ = prepared(Path(bundle_dir), name, (Path(bundle_dir) / name).read_bytes(), options)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    found = [
        (tensor.name, ir.DataType(tensor.data_type), int(np.prod(tensor.dims, dtype=np.int64)))
        for tensor in graph.initializer
    ]
    return sorted(
        ((name, dtype.name, int(count * dtype.itemsize)) for name, dtype, count in found),
        key=lambda row: (-row[2], row[0]),
    )


def _options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    options = _options(threads)
    model, handed = prepared(path.parent, path.name, path.read_bytes(), options)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.edge_svd_handed = handed  # must outlive the session
    return session


def _torch_logits(model: Any, window: Array, piece: int) -> Iterator[Array]:
    import torch

    cache = None
    for start in range(0, window.shape[1], piece):
        with torch.no_grad():
            output = model(torch.from_numpy(window[:, start : start + piece]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        yield output.logits[0].float().numpy()


def _bundle_logits(
    session: onnxruntime.InferenceSession, layers: int, heads: tuple[int, int], window: Array, piece: int
) -> Iterator[Array]:
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    kind = next(item.type for item in session.get_inputs() if item.name.startswith("past_key_values."))
    cache = [np.zeros((1, heads[0], 0, heads[1]), CACHE_TYPES[kind]) for _ in names]
    for start in range(0, window.shape[1], piece):
        tokens = window[:, start : start + piece]
        end = start + tokens.shape[1]
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
        }
        feeds |= {f"past_key_values.{name}": value for name, value in zip(names, cache, strict=True)}
        logits, *cache = session.run(["logits", *(f"present.{name}" for name in names)], feeds)
        yield logits[0]


def _kl_sum(expected: Array, found: Array) -> float:
    """Sum over rows of KL(softmax(expected) ‖ softmax(found)) in nats."""
    p, q = _log_softmax(expected), _log_softmax(found)
    return float(np.sum(np.exp(p) * (p - q), dtype=np.float64))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(
        shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    )
