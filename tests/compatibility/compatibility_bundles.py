"""Tiny bundles with all that travels beside the weights: tokenizer, chat template, configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from export_tiny import INT8, frequencies, make_checkpoint, tiny_model
from tiny_folder import tiny_folder

from edge_svd.architectures import Site, architecture_of
from edge_svd.companions import companions
from edge_svd.export import export_bundle, linear
from edge_svd.formats import WHOLE_PASS, SiteFormat
from edge_svd.planner.kv_cache import cache_scales
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.kernel_support import whole_pass_works

CONTEXT = 256
END, PAD = 2, 0
"""Ids of the tiny tokenizer's <|im_end|> and <|endoftext|>."""

CACHES = ("float32", "int8")
"""Types of the KV cache that a bundle can have."""


def int8(site: Site) -> SiteFormat:
    return INT8


def trellis(site: Site) -> SiteFormat:
    """Codes everywhere, and three groups of rows in the vocabulary's tables."""
    if site.type in ("embedding", "lm_head"):
        rows = site.shape[0]
        return SiteFormat("table", rows=((5, rows // 8), (4, rows // 2), (1, rows - rows // 8 - rows // 2)))
    return SiteFormat("trellis", bits=3)


def blocks(site: Site) -> SiteFormat:
    return SiteFormat("blocks", bits=4, block=32, zero=True)


def whole(site: Site) -> SiteFormat:
    """Inputs of a pass on one scale."""
    return INT8 if site.type in ("embedding", "lm_head") else SiteFormat("int8", block=WHOLE_PASS)


FORMATS = {"int8": int8, "trellis": trellis, "blocks": blocks, "whole": whole}


def tiny_bundle(folder: Path, family: str, formats: str, cache: str, exact: bool) -> Path:
    """Export a random model of `family` with the tokenizer of `tiny_folder`, whose token for padding is not its end.

    `exact` leaves activations in float32: padding changes the order of attention's sums and so their last bit, and
    rounding to int8 makes that large enough for another token where a random model has two that are close.
    """
    if formats == "whole" and not whole_pass_works():
        pytest.skip("this processor has no VNNI: onnxruntime computes such products wrongly, and we refuse them")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder(folder / "source"))
    tokenizer.pad_token = "<|endoftext|>"
    settings: dict[str, Any] = {"bos_token_id": PAD, "eos_token_id": END, "pad_token_id": PAD}
    settings["max_position_embeddings"] = 2 * CONTEXT
    if family == "gemma2":
        settings["final_logit_softcapping"] = 30.0  # a low cap makes equals of all that reach it
    model = tiny_model(family, vocab_size=len(tokenizer), **settings)
    config = json.loads(model.config.to_json_string())
    beside = companions("tiny", config, {}, tokenizer, architecture_of(model.config), b"")
    extra: dict[str, Any] = {}
    if cache == "int8":
        a = architecture_of(model.config)
        windows = torch.from_numpy(np.random.default_rng(5).integers(3, len(tokenizer), (4, 48)))
        rotary = {key: frequencies(model.model, key).numpy() for key in {rope for rope in a.layer_ropes if rope}}
        extra = {name: scale.numpy() for name, scale in cache_scales(model, a, rotary, windows).items()}
    plan = {"kv_cache": cache}
    make_checkpoint(folder / "checkpoint", model, FORMATS[formats], companions=beside, plan=plan, extra=extra)
    with pytest.MonkeyPatch.context() as patch:
        if exact:
            patch.setattr(linear, "ACCURACY_LEVEL", 0)
        bundle = export_bundle(folder / "checkpoint", folder / "bundle", context=CONTEXT)
    assert open_bundle(bundle).manifest.model.kv_dtype == cache
    return bundle
