"""transformers on torch, in the precision named in the options; logits of the last position alone in a prompt."""

from __future__ import annotations

import torch
from protocol import Array, Request, main
from transformers import AutoModelForCausalLM, AutoTokenizer


class Torch:
    """The cache is the one that transformers makes."""

    def __init__(self, request: Request) -> None:
        torch.set_num_threads(request.threads)
        torch.set_grad_enabled(False)
        precision = getattr(torch, request.options["precision"])
        self.model = AutoModelForCausalLM.from_pretrained(request.path, torch_dtype=precision, local_files_only=True)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(request.path, local_files_only=True)
        self.reset()

    def reset(self) -> None:
        self.past = None

    def feed(self, ids: Array) -> Array:
        answer = self.model(
            input_ids=torch.from_numpy(ids), past_key_values=self.past, use_cache=True, logits_to_keep=1
        )
        self.past = answer.past_key_values
        return answer.logits[:, -1].float().numpy()

    def logits(self, ids: Array) -> Array:
        return self.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].float().numpy()


if __name__ == "__main__":
    main(Torch, ("torch", "transformers", "numpy"))
