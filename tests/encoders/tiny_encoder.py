"""A tiny random BERT with its WordPiece tokenizer, saved as a sentence-transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_folder import WORDS, tiny_text
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def tiny_passages(count: int = 60) -> list[str]:
    """Passages of one to four sentences."""
    sentences = [f"{part}." for part in tiny_text(900).split(".")]
    return ["".join(sentences[3 * i : 3 * i + 1 + i % 4]).strip() for i in range(count)]


def tiny_tokenizer() -> Tokenizer:
    """WordPiece over the test's words and single characters, lower case, [CLS] … [SEP] around a text."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz0123456789.,"]
    known = [*SPECIAL, "the", "near", "keeps", "in", "its", *WORDS, *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {token: number for number, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    return tokenizer


def tiny_encoder(path: Path, pooling: str = "mean", max_tokens: int | None = 48, **changes: Any) -> Path:
    """Write a two-layer BERT of about 0.1 M parameters, norms and biases away from ones and zeros."""
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + 3,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(0.2 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (0.5 if "embeddings" in name else 1.0 / value.shape[1] ** 0.5))
    (path / "1_Pooling").mkdir(parents=True)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    (path / "modules.json").write_text(json.dumps(MODULES))
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    if max_tokens is not None:
        limits = {"max_seq_length": max_tokens, "do_lower_case": False}
        (path / "sentence_bert_config.json").write_text(json.dumps(limits))
    return path


def sentence_embeddings(model: Any, tokenizer: Tokenizer, texts: list[str], longest: int, pooling: str) -> torch.Tensor:
    """The plain reference: one text at a time, nothing padded, its definition written out."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if len(ids) > longest:
            ids = [*ids[: longest - 1], ids[-1]]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[0]
        found.append(vector / vector.norm())
    return torch.stack(found)
