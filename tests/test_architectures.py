"""The description of a decoder, held against the modules that transformers builds from the same configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edge_svd.architectures import SUPPORTED, Architecture, architecture_of, norms_of, sites_of
from edge_svd.conv1d import without_conv1d
from edge_svd.errors import InputError

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 16, "head_dim": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "num_hidden_layers": 7},
    "phi3": {"tie_word_embeddings": False, "sliding_window": None},
    "smollm3": {"use_sliding_window": False},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.5,
        "mlp_bias": True,
    },
    "olmo2": {"attention_bias": True},
    "gpt2": {"n_inner": 80},
    "opt": {"ffn_dim": 80},
}


def config_of(family: str, **changes: Any) -> Any:
    return AutoConfig.for_model(family, **{**SMALL, **CASES[family], **changes})


def test_every_supported_family_has_a_case() -> None:
    assert set(CASES) == set(SUPPORTED)


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("tied", [False, True])
def test_sites_are_exactly_the_modules_of_transformers(family: str, tied: bool) -> None:
    config = config_of(family, tie_word_embeddings=tied)
    architecture = architecture_of(config)
    model = without_conv1d(AutoModelForCausalLM.from_config(config))
    names = architecture.layout
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and name != names.positions
    }
    sites = {site.name: site for site in sites_of(architecture)}
    assert list(sites)[0] == names.embedding and list(sites)[-1] == "lm_head"
    assert set(sites) == set(linear)
    for name, site in sites.items():
        assert site.shape == tuple(linear[name].weight.shape), name
        assert site.bias == (getattr(linear[name], "bias", None) is not None), name
    shared = linear["lm_head"].weight is linear[names.embedding].weight
    assert shared == tied == (sites["lm_head"].tied_to == names.embedding)
    known = {f"{name}.weight" for name in sites} | {f"{name}.bias" for name in sites} | set(norms_of(architecture))
    known |= {f"{names.positions}.weight"} if architecture.learned_positions else set()
    assert {name for name, _ in model.named_parameters()} <= known
    if architecture.learned_positions:
        rows = architecture.max_position + names.first_position
        assert model.get_parameter(f"{names.positions}.weight").shape == (rows, architecture.hidden_size)
    for name, length in norms_of(architecture).items():
        assert model.get_parameter(name).shape == (length,), name


@pytest.mark.parametrize("family", SUPPORTED)
def test_inputs_are_shared_where_modules_read_the_same_activation(family: str) -> None:
    config = config_of(family)
    sites = sites_of(architecture_of(config))
    model = without_conv1d(AutoModelForCausalLM.from_config(config).eval())
    seen: dict[str, torch.Tensor] = {}
    for site in sites[1:]:
        hook = lambda _, arguments, name=site.name: seen.__setitem__(name, arguments[0].clone())  # noqa: E731
        model.get_submodule(site.name).register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.arange(5)[None])
    for one in sites[1:]:
        for two in sites[1:]:
            same = seen[one.name].shape == seen[two.name].shape and torch.equal(seen[one.name], seen[two.name])
            assert same == (one.input == two.input), (one.name, two.name)


@pytest.mark.parametrize("family", SUPPORTED)
def test_json_round_trip(family: str) -> None:
    architecture = architecture_of(config_of(family))
    assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize("family", SUPPORTED)
def test_scales_and_windows_are_those_of_the_modules(family: str) -> None:
    config = config_of(family)
    architecture, model = architecture_of(config), AutoModelForCausalLM.from_config(config)
    if family == "gpt2":  # its modules hold neither scale nor window
        assert architecture.attention_scale == pytest.approx((config.n_embd / config.n_head) ** -0.5)
        assert set(architecture.layer_windows) == {0}
        return
    for layer in range(architecture.num_layers):
        module = model.get_submodule(architecture.layout.layer(layer))
        assert module.self_attn.scaling == pytest.approx(architecture.attention_scale)
        window = getattr(module.self_attn, "sliding_window", None) or 0
        if family in ("mistral", "phi3"):  # these read the window from the configuration in every layer
            window = config.sliding_window or 0
        assert architecture.layer_windows[layer] == window
        if family == "smollm3":
            assert bool(module.self_attn.use_rope) == (architecture.layer_ropes[layer] != "")
    expected = {"granite": 3.0}.get(family, math.sqrt(config.hidden_size) if family.startswith("gemma") else 1.0)
    assert architecture.embedding_multiplier == float(torch.tensor(expected, dtype=torch.float32))


def test_rotary_types() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    architecture = architecture_of(config_of("llama", rope_scaling=yarn))
    assert architecture.rope_scale == pytest.approx(0.1 * math.log(4.0) + 1.0)
    factors = {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    phi = config_of("phi3", rope_scaling=factors, original_max_position_embeddings=64)
    architecture = architecture_of(phi)
    assert architecture.max_position == 64
    assert architecture.rope_scale == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    rotary = AutoModelForCausalLM.from_config(phi).model.rotary_emb
    assert rotary.attention_scaling == pytest.approx(architecture.rope_scale)
    with pytest.raises(InputError, match="dynamic"):
        architecture_of(config_of("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))


def test_partial_rotary_is_phi3_only() -> None:
    assert architecture_of(config_of("phi3", partial_rotary_factor=0.5)).rotary_dim == 6
    with pytest.raises(InputError, match="part of each head"):
        architecture_of(config_of("llama", partial_rotary_factor=0.5))


def test_windows_as_long_as_the_context_are_full_attention() -> None:
    assert set(architecture_of(config_of("mistral", sliding_window=256)).layer_windows) == {0}


@pytest.mark.parametrize("family", ["gpt_neo", "mixtral", "mamba"])
def test_unsupported_architectures_are_refused_by_name(family: str) -> None:
    with pytest.raises(InputError, match=f"{family}.*not supported; supported are llama, mistral"):
        architecture_of(AutoConfig.for_model(family))


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match="mish"):
        architecture_of(config_of("llama", hidden_act="mish"))
    with pytest.raises(InputError, match="quick_gelu"):
        architecture_of(config_of("gpt2", activation_function="quick_gelu"))


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true"),
        ("opt", {"word_embed_proj_dim": 24}, "embeddings of width 24 that are projected to 48"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = false"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = false"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm = true"),
    ],
)
def test_variants_that_cannot_be_expressed_are_refused(family: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^This {family} model uses {said}, which is not supported \\(.*\\)\\.$"):
        architecture_of(config_of(family, **change))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "gpt2"),
        ("family", "gpt_neo"),
        ("norms_after", True),
        ("norms_before", False),
        ("residual_multiplier", 0.0),
        ("logit_divisor", -1.0),
        ("learned_positions", True),
        ("gated", 1),
        ("layer_norm", None),
        ("hidden_size", 0),
        ("hidden_size", 48.0),
        ("hidden_size", True),
        ("num_layers", 2**31),
        ("num_kv_heads", 3),
        ("norm_eps", float("nan")),
        ("norm_eps", "1e-5"),
        ("attention_scale", -1.0),
        ("layer_windows", [0]),
        ("layer_windows", [0, 0, 0, "0"]),
        ("layer_ropes", ["nowhere"] * 4),
        ("rotary_dim", 5),
        ("rotary_dim", 1000),
        ("qk_norm", 0),
        ("tied_embeddings", None),
        ("eos_token_ids", [96]),
        ("bos_token_id", -1),
        ("biased", ["q", "q"]),
        ("biased", ["embedding"]),
        ("activation", "mish"),
    ],
)
def test_from_json_is_strict(field: str, value: Any) -> None:
    plain = architecture_of(config_of("llama")).to_json()
    with pytest.raises(InputError):
        Architecture.from_json({**plain, field: value})


def test_from_json_refuses_missing_and_unknown_fields() -> None:
    plain = architecture_of(config_of("llama")).to_json()
    with pytest.raises(InputError, match="colour"):
        Architecture.from_json({**plain, "colour": 1})
    del plain["norm_eps"]
    with pytest.raises(InputError, match="norm_eps"):
        Architecture.from_json(plain)
    with pytest.raises(InputError):
        Architecture.from_json([])
