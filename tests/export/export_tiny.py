"""Tiny random transformers models, quantised by plain code into checkpoints, and the torch models they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

from edge_svd.architectures import Architecture, Site, architecture_of, norms_of, sites_of
from edge_svd.checkpoint import write_checkpoint
from edge_svd.conv1d import without_conv1d
from edge_svd.formats import SiteFormat, padded
from edge_svd.trellis_code import trellis_code

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {"tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {"sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24, "tie_word_embeddings": True},
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3-partial": ("Phi3", {"sliding_window": None, "head_dim": 32, "partial_rotary_factor": 0.5}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {"tie_word_embeddings": True}),
    "gpt2": ("GPT2", {"n_inner": 96, "tie_word_embeddings": True}),
    "opt": ("OPT", {"ffn_dim": 96, "tie_word_embeddings": True}),
    "opt-untied": ("OPT", {"ffn_dim": 96, "activation_function": "gelu", "enable_bias": False}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
}

INT8, INT16 = SiteFormat("int8"), SiteFormat("int16")


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in eval mode, with norms and biases away from their initial ones and zeros."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**(BASE | settings | changes))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = without_conv1d(getattr(transformers, f"{name.removesuffix('Text')}{kind}")(config).eval())
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (1.0 if "embed" in key else 1.5 / value.shape[1] ** 0.5))
    return model


def _round(values: np.ndarray, limit: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers and the scale (bf16 values, as float32) along the other axis."""
    scale = (np.abs(values).max(axis=axis) / limit).astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.clip(np.rint(values / np.expand_dims(scale, axis)), -limit, limit), scale


def quantise(weight: np.ndarray, fmt: SiteFormat) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(tensors of the checkpoint, the matrix that they stand for)."""
    m, n = weight.shape
    wide = np.zeros((m, padded(n)), np.float32)
    wide[:, :n] = weight
    if fmt.kind == "row-pivoted":
        return _row_pivoted(wide, n, fmt.k8)
    if fmt.kind == "column-pivoted":
        return _column_pivoted(wide, n, fmt.k8)
    if fmt.kind == "blocks":
        return _blocks(weight, fmt)
    if fmt.kind == "corrected":
        tensors, base = _blocks(weight, fmt)
        thin, more = quantise(weight - base, SiteFormat("low-rank", fmt.k8))
        return {**tensors, "b8": thin["b8"], "a8": thin["a8"], "t8": thin["s8"]}, base + more
    if fmt.bits or fmt.rows:
        return _coded(wide, n, fmt)
    if not fmt.factored:
        limit, dtype, suffix = (127, np.int8, "8") if fmt.kind == "int8" else (32512, np.int16, "16")
        q, s = _round(wide, limit, 1)
        tensors = {f"q{suffix}": q.astype(dtype), f"s{suffix}": s.astype(ml_dtypes.bfloat16)}
        return tensors, (q * s[:, None])[:, :n]
    u, sigma, v = np.linalg.svd(wide.astype(np.float64), full_matrices=False)
    tensors, total = {}, np.zeros((m, padded(n)))
    for suffix, dtype, limit, first, count in (
        ("4", np.int8, 7, fmt.k16 + fmt.k8, fmt.k4),
        ("8", np.int8, 127, fmt.k16, fmt.k8),
        ("16", np.int16, 32512, 0, fmt.k16),
    ):
        if not count:
            continue
        rank = slice(first, first + count)
        b, a = u[:, rank] * np.sqrt(sigma[rank]), np.sqrt(sigma[rank])[:, None] * v[rank]
        steps = [np.abs(b).max(axis=0) / limit, np.abs(a).max(axis=1) / limit]
        b, a = np.rint(b / steps[0]), np.rint(a / steps[1][:, None])
        s = (steps[0] * steps[1]).astype(ml_dtypes.bfloat16)
        stored = [_nibbles(values) if suffix == "4" else values.astype(dtype) for values in (b, a)]
        tensors |= {f"b{suffix}": stored[0], f"a{suffix}": stored[1], f"s{suffix}": s}
        total += (b * s.astype(np.float64)) @ a
    return tensors, total[:, :n].astype(np.float32)


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Two 4-bit numbers a byte, 8 more than they are, the first one low."""
    raised = (values + 8).astype(np.uint8)
    return raised[:, ::2] | (raised[:, 1::2] << 4)


def _row_pivoted(wide: np.ndarray, n: int, k: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every other row first as pivots; the others as their least-squares combinations."""
    m = len(wide)
    pivots = np.array([*range(0, m, 2), *range(1, m, 2)])[:k]
    rest = np.setdiff1d(np.arange(m), pivots)
    a, s = _round(wide[pivots], 127, 1)
    rounded = (a * s[:, None]).astype(np.float32)
    coefficients = np.linalg.lstsq(rounded.T.astype(np.float64), wide[rest].T.astype(np.float64), rcond=None)[0].T
    c, t = _round(coefficients.astype(np.float32), 127, 1)
    made = np.empty_like(wide)
    made[pivots], made[rest] = rounded, (c * t[:, None]) @ rounded
    tensors = {
        "a8": a.astype(np.int8),
        "s8": s.astype(ml_dtypes.bfloat16),
        "c8": c.astype(np.int8),
        "t8": t.astype(ml_dtypes.bfloat16),
        "order": np.argsort(np.concatenate((pivots, rest))).astype(np.uint16),
    }
    return tensors, made[:, :n].astype(np.float32)


def _column_pivoted(wide: np.ndarray, n: int, k: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same by columns; each side has its scales by rows, as it is stored."""
    width = wide.shape[1]
    pivots = np.array([*range(0, n, 2), *range(1, n, 2)])[:k]
    rest = np.setdiff1d(np.arange(width), pivots)
    b, s = _round(wide[:, pivots], 127, 1)
    rounded = (b * s[:, None]).astype(np.float32)
    coefficients = np.linalg.lstsq(rounded.astype(np.float64), wide[:, rest].astype(np.float64), rcond=None)[0]
    c, t = _round(coefficients.astype(np.float32), 127, 1)
    made = np.empty_like(wide)
    made[:, pivots], made[:, rest] = rounded, rounded @ (c * t[:, None])
    tensors = {
        "b8": b.astype(np.int8),
        "s8": s.astype(ml_dtypes.bfloat16),
        "c8": c.astype(np.int8),
        "t8": t.astype(ml_dtypes.bfloat16),
        "order": np.concatenate((pivots, rest)).astype(np.uint16),
    }
    return tensors, made[:, :n].astype(np.float32)


def _blocks(weight: np.ndarray, fmt: SiteFormat) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rounded to nearest, with random zero points around the middle."""
    m, n = weight.shape
    count, top = n // fmt.block, 2**fmt.bits - 1
    draw = np.random.default_rng(m * n)
    middle = 2 ** (fmt.bits - 1)
    zero = draw.integers(middle - 1, middle + 1, (m, count)) if fmt.zero else np.full((m, count), middle)
    row = (np.abs(weight).max(1) / middle * 1.2).astype(ml_dtypes.bfloat16)
    code = draw.integers(150, 256, (m, count)).astype(np.uint8)
    scale = code.astype(np.float32) * (row.astype(np.float32) / np.float32(255))[:, None]
    spread, centre = np.repeat(scale, fmt.block, 1), np.repeat(zero, fmt.block, 1)
    values = np.clip(np.rint(weight / spread) + centre, 0, top).astype(np.int64)

    def pack(numbers: np.ndarray) -> np.ndarray:
        each = 8 // fmt.bits
        padded_ = np.zeros((m, -(-numbers.shape[1] // each) * each), np.int64)
        padded_[:, : numbers.shape[1]] = numbers
        return sum(padded_[:, at::each] << (at * fmt.bits) for at in range(each)).astype(np.uint8)

    tensors = {"q": pack(values), "u8": code, "s8": row}
    if fmt.zero:
        tensors["z"] = pack(zero)
    return tensors, ((values - centre) * spread).astype(np.float32)


def _coded(wide: np.ndarray, n: int, fmt: SiteFormat) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random symbols in random order: the matrix is whatever the code makes of them."""
    m, width = wide.shape
    draw = np.random.default_rng(m * width)
    order, place = draw.permutation(width), draw.permutation(m) if fmt.rows else np.arange(m)
    tensors: dict[str, np.ndarray] = {}
    parts = []
    for bits, count in fmt.rows or ((fmt.bits, m),):
        code = trellis_code(bits)
        symbols = draw.integers(0, 1 << bits, (count, width))
        levels = np.zeros((count, width))
        for i in range(count):
            for j in range(width):
                reach = range(min(i, width - 1 - j, code.window // bits), -1, -1)
                window = sum(int(symbols[i - back, j + back]) << (bits * back) for back in reach)
                levels[i, j] = code.levels[window % (1 << code.window)]
        parts.append(levels)
        low = 0
        for plane in {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}[bits]:
            packed = np.zeros((count, width * plane // 8), np.uint8)
            for j in range(width):
                part = (symbols[:, j] >> low) % (1 << plane)
                at = j % packed.shape[1]
                packed[:, at] |= (part << (plane * (j // packed.shape[1]))).astype(np.uint8)
            tensors[f"{f'g{bits}' if fmt.rows else ''}p{plane}"] = packed
            low += plane
    levels = np.concatenate(parts)[place][:, order]
    scale = (np.abs(wide).mean(1) / 40).astype(ml_dtypes.bfloat16)
    tensors |= {"s8": scale, "order": order.astype(np.uint16)}
    if fmt.rows:
        columns = draw.uniform(0.5, 2.0, width).astype(ml_dtypes.bfloat16)
        tensors |= {"place": place.astype(np.uint16), "c8": columns}
        levels = levels * columns.astype(np.float32)
    return tensors, (levels * scale.astype(np.float32)[:, None])[:, :n].astype(np.float32)


def effective_norm(values: torch.Tensor, family: str) -> np.ndarray:
    weight = values.detach().numpy().astype(np.float32)
    return 1 + weight if family.startswith("gemma") else weight


def frequencies(base: Any, key: str) -> torch.Tensor:
    """The table "global" or "local"; Gemma 3 has two modules in transformers 4 and two buffers of one module in 5."""
    if hasattr(base, "rotary_emb_local"):
        return (base.rotary_emb_local if key == "local" else base.rotary_emb).inv_freq
    if hasattr(base.rotary_emb, "inv_freq"):
        return base.rotary_emb.inv_freq
    return getattr(base.rotary_emb, "sliding_attention_inv_freq" if key == "local" else "full_attention_inv_freq")


def make_checkpoint(
    path: Path,
    model: Any,
    choose: Callable[[Site], SiteFormat] = lambda site: INT8,
    companions: dict[str, bytes] | None = None,
    plan: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Architecture:
    """Quantise `model` into a checkpoint folder, with `extra` tensors, and put the dequantised matrices into the model
    itself."""
    architecture = architecture_of(model.config)
    modules = dict(model.named_modules())
    tensors: dict[str, np.ndarray] = dict(extra or {})
    formats: dict[str, SiteFormat] = {}
    for site in sites_of(architecture):
        module = modules[site.name]
        if site.bias:
            tensors[f"{site.name}.bias"] = module.bias.detach().numpy()
        if site.tied_to:
            continue
        formats[site.name] = choose(site)
        parts, dense = quantise(module.weight.detach().numpy(), formats[site.name])
        tensors |= {f"{site.name}.{suffix}": values for suffix, values in parts.items()}
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(dense))
    for name in norms_of(architecture):
        tensors[name] = effective_norm(model.get_parameter(name), architecture.family)
    if architecture.learned_positions:
        names = architecture.layout
        table = model.get_parameter(f"{names.positions}.weight").detach()
        table.copy_(table.half().float())
        tensors[f"{names.positions}.weight"] = table[names.first_position :].half().numpy()
    for key in {rope for rope in architecture.layer_ropes if rope}:
        tensors[f"rotary.{key}.inv_freq"] = frequencies(model.model, key).numpy().astype(np.float32)
    write_checkpoint(
        path,
        architecture,
        formats,
        plan or {"note": "a test"},
        {"model": "tiny", "digest": "ab" * 32},
        tensors,
        {"config.json": model.config.to_json_string().encode(), "tokenizer.json": b"{}", "README.md": b"# tiny\n"}
        if companions is None
        else companions,
    )
    return architecture


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens), use_cache=False).logits.float().numpy()
