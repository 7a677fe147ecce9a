"""Optimum's ORTModelForCausalLM on the ONNX export that Optimum makes."""

from __future__ import annotations

import torch
from onnx_decoder import session_options
from optimum.onnxruntime import ORTModelForCausalLM
from protocol import Array, Request, main
from transformers import AutoTokenizer


class Optimum:
    """The cache grows by a copy a token, as Optimum's graphs have it."""

    def __init__(self, request: Request) -> None:
        torch.set_num_threads(request.threads)
        self.model = ORTModelForCausalLM.from_pretrained(
            request.path, session_options=session_options(request.threads), use_cache=True, local_files_only=True
        )
        self.tokenizer = AutoTokenizer.from_pretrained(request.path, local_files_only=True)
        self.reset()

    def reset(self) -> None:
        self.past, self.position = None, 0

    def feed(self, ids: Array) -> Array:
        return self._run(ids)[:, -1]

    def logits(self, ids: Array) -> Array:
        self.reset()
        return self._run(ids[None])[0]

    def _run(self, ids: Array) -> Array:
        batch, count = ids.shape
        stop = self.position + count
        answer = self.model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.ones((batch, stop), dtype=torch.int64),
            position_ids=torch.arange(self.position, stop).repeat(batch, 1),
            past_key_values=self.past,
            use_cache=True,
        )
        self.past, self.position = answer.past_key_values, stop
        return answer.logits.numpy()


if __name__ == "__main__":
    main(Optimum, ("optimum", "optimum-onnx", "onnxruntime", "transformers", "torch", "numpy"))
