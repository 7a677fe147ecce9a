from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from edge_svd.architectures import architecture_of
from edge_svd.errors import InputError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "permute.py"
_spec = importlib.util.spec_from_file_location("permute_script", SCRIPT)
assert _spec is not None and _spec.loader is not None
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def tiny(tied: bool, bias: bool = False) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_permuted_model_computes_the_same(tied: bool) -> None:
    model, tokens = tiny(tied), torch.arange(20).view(1, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(tokens).logits
        script.permute(model, architecture_of(model.config), seed=1)
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    for name, value in model.state_dict().items():  # everything moved, nothing was lost
        assert not torch.equal(value, before[name])
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)


def test_models_with_biases_are_refused() -> None:
    model = tiny(True, bias=True)
    with pytest.raises(InputError, match="biases"):
        script.permute(model, architecture_of(model.config), seed=1)
