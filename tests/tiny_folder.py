"""A tiny random model with its tokenizer, saved as a transformers folder: what a user's MODEL argument looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "river stone market engine letter window garden copper signal harbour mountain paper".split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_text(sentences: int = 900) -> str:
    """Plain prose-like text, the same at every call."""
    return " ".join(
        f"The {WORDS[i % 12]} near the {WORDS[(i * 7 + 3) % 12]} keeps {i % 97} {WORDS[(i * 5 + 1) % 12]}s "
        f"in its {WORDS[(i * i) % 12]}."
        for i in range(sentences)
    )


def tiny_folder(path: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a two-layer model of about 0.1 M parameters whose logits are far from uniform."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([tiny_text(100)], trainer)
    size = tokenizer.get_vocab_size()
    settings: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(settings | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 and family != "llama":
                value.add_(0.1 * torch.randn_like(value))
            if value.dim() == 2:
                value.copy_(torch.randn_like(value) * (0.3 if "embed" in name else 1.2 / value.shape[1] ** 0.5))
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
