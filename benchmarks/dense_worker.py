"""Speed and peak memory of the dense fp32 model in torch, on its own: prompt 64, 128 new tokens; prefill 512."""

from __future__ import annotations

import json
import sys
import time

import torch

from edge_svd.models import open_model
from edge_svd.runtime.memory import peak_rss_bytes


def main() -> None:
    torch.set_num_threads(2)
    opened = open_model(sys.argv[1])
    model = opened.model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, opened.architecture.vocab_size, (1, 512), generator=generator)
    with torch.inference_mode():
        model(input_ids=ids[:, :32])
        started = time.perf_counter()
        model(input_ids=ids, logits_to_keep=1)
        prefill = 512 / (time.perf_counter() - started)
        state = model(input_ids=ids[:, :64], use_cache=True, logits_to_keep=1)
        started = time.perf_counter()
        for _ in range(128):
            token = state.logits[:, -1:].argmax(-1)
            state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
        decode = 128 / (time.perf_counter() - started)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    print(
        json.dumps(
            {
                "file_bytes": size,
                "decode_tokens_per_s": decode,
                "prefill_tokens_per_s": prefill,
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main()
