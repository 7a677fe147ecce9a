"""Decoders of the GPT-2 kind: LayerNorm with biases, learned positions, an MLP without a gate.

What such a configuration says, read into the fields of `Architecture` that differ; whatever those cannot express is
refused. Nothing here imports the architecture itself.
"""

from __future__ import annotations

from typing import Any

from edge_svd.errors import InputError

FAMILIES = ("gpt2", "opt")

LAYER_NORM_EPS = 1e-5
"""torch's default, which OPT's configuration does not name."""


def refuse_variants(config: Any, family: str) -> None:
    """InputError for a configuration whose model computes something that no field says."""
    if family == "gpt2":
        faults = {
            "scale_attn_by_inverse_layer_idx": ("scores are scaled by 1 / sqrt(head width) in every layer", True),
            "scale_attn_weights": ("scores are scaled by 1 / sqrt(head width)", False),
            "add_cross_attention": ("only decoders without an encoder are", True),
        }
        for key, (why, fault) in faults.items():
            if getattr(config, key, not fault) is fault:
                raise _refusal(family, f"{key} = {str(fault).lower()}", why)
    if family == "opt":
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        if width != config.hidden_size:
            what = f"embeddings of width {width} that are projected to {config.hidden_size}"
            raise _refusal(family, what, "embeddings of the hidden size are")
        if not config.do_layer_norm_before:
            raise _refusal(family, "do_layer_norm_before = false", "norms before attention and MLP are")
        if not getattr(config, "layer_norm_elementwise_affine", True):
            raise _refusal(family, "layer_norm_elementwise_affine = false", "norms with weights and biases are")
        if getattr(config, "_remove_final_layer_norm", False):
            raise _refusal(family, "_remove_final_layer_norm = true", "a last norm before the head is")


def sizes(config: Any, family: str) -> dict[str, Any]:
    """Fields of the architecture by name, under which transformers keeps them elsewhere than Llama's."""
    if family == "gpt2":
        return {
            "intermediate_size": int(config.n_inner or 4 * config.hidden_size),
            "num_kv_heads": int(config.num_attention_heads),
            "norm_eps": float(config.layer_norm_epsilon),
            "fused_qkv": True,
            "biased": ("o", "qkv", "up", "down"),
        }
    return {
        "intermediate_size": int(config.ffn_dim),
        "num_kv_heads": int(config.num_attention_heads),
        "norm_eps": LAYER_NORM_EPS,
        "fused_qkv": False,
        "biased": ("q", "k", "v", "o", "up", "down") if getattr(config, "enable_bias", True) else (),
    }


def _refusal(family: str, what: str, why: str) -> InputError:
    return InputError(f"This {family} model uses {what}, which is not supported ({why}).")
