"""The same greedy continuation from three runtimes; ids in, new ids out, without the end token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.generate import generate
from edge_svd.runtime.session import Session

Prompts = Sequence[Sequence[int]]


def cut(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """What comes before the first end token."""
    plain = [int(token) for token in tokens]
    return plain[: min((plain.index(end) for end in ends if end in plain), default=len(plain))]


class Ours:
    """edge_svd.runtime, every prompt in one pass."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.session = Session(open_bundle(folder), threads=threads)

    def one(self, prompt: Sequence[int], count: int) -> list[int]:
        self.session.truncate()
        return list(generate(self.session, prompt, max_new_tokens=count, chunk=len(prompt)))


class Genai:
    """onnxruntime-genai; the number of threads is laid over genai_config.json, the folder stays as it is."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        config = onnxruntime_genai.Config(str(folder))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self.model = onnxruntime_genai.Model(config)
        self.tokenizer = onnxruntime_genai.Tokenizer(self.model)
        self.ends = open_bundle(folder).manifest.model.eos_token_ids

    def generator(self, length: int, **options: Any) -> Any:
        """With a cache for `length` tokens a sequence."""
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=length, **options)
        return onnxruntime_genai.Generator(self.model, parameters)

    def batch(self, prompts: Prompts, count: int, **options: Any) -> list[list[int]]:
        """Prompts of unequal lengths are padded on the right, as Tokenizer.encode_batch does."""
        width = max(map(len, prompts))
        rows = np.full((len(prompts), width), self.tokenizer.pad_token_id, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            row[: len(prompt)] = prompt
        generator = self.generator(width + count, batch_size=len(prompts), **options)
        generator.append_tokens(rows)
        while not generator.is_done():
            generator.generate_next_token()
        return [cut(generator.get_sequence(index)[width:], self.ends) for index in range(len(prompts))]

    def one(self, prompt: Sequence[int], count: int) -> list[int]:
        return self.batch([prompt], count)[0]


class Optimum:
    """ORTModelForCausalLM through transformers' generate."""

    def __init__(self, folder: Path, threads: int = 1, **attributes: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.model = ORTModelForCausalLM.from_pretrained(folder, use_cache=True, session_options=options)
        for name, value in attributes.items():
            setattr(self.model, name, value)
        self.info = open_bundle(folder).manifest.model

    def batch(self, prompts: Prompts, count: int, width: int = 0, **options: Any) -> list[list[int]]:
        """Prompts are padded on the left to the longest or to `width`, as transformers' tokenizers do for a bundle."""
        width = max(width, *map(len, prompts))
        pad = self.model.generation_config.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **options)
        return [cut(row[width:].tolist(), self.info.eos_token_ids) for row in made]

    def one(self, prompt: Sequence[int], count: int) -> list[int]:
        return self.batch([prompt], count)[0]
