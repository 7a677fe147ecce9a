"""onnxruntime-genai through its own generator; the number of threads is told to its session."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime_genai as og
from protocol import CONTEXT, Array, Request, main


class Genai:
    """A generator holds one conversation; a new one is made for every prompt. Its own loop decodes."""

    def __init__(self, request: Request) -> None:
        config = og.Config(request.path)
        session = {"intra_op_num_threads": request.threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.tokenizer = og.Tokenizer(self.model)
        self.batch = request.batch
        self.reset()

    def reset(self) -> None:
        params = og.GeneratorParams(self.model)
        # A least length as long as the greatest: the end of a sequence is never chosen.
        params.set_search_options(max_length=CONTEXT, min_length=CONTEXT, batch_size=self.batch, do_sample=False)
        self.generator = og.Generator(self.model, params)

    def feed(self, ids: Array) -> Array:
        self.generator.append_tokens(ids.astype(np.int32))
        return np.asarray(self.generator.get_logits()).reshape(self.batch, -1)

    def generate(self, new: int) -> list[int]:
        made = []
        # The first choice is among logits that are there already, so the last pass is asked for by one choice more.
        for _ in range(new + 1):
            self.generator.generate_next_token()
            made.append(int(self.generator.get_next_tokens()[0]))
        return made[:new]

    def logits(self, ids: Array) -> Array:
        self.reset()
        self.generator.append_tokens(ids[None].astype(np.int32))
        return np.asarray(self.generator.get_output("logits"))[0]


if __name__ == "__main__":
    main(Genai, ("onnxruntime-genai", "onnxruntime", "numpy"))
