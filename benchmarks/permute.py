"""Writes a permuted copy of a model: the same function, with its weights off the grid that they were quantised on.

    python benchmarks/permute.py smollm2-demo out/permuted [--seed 0]

The demonstration model comes as a 4-bit GGUF, so its dequantised rows lie on a grid of blocks of 32 inputs, and any
quantiser aligned with those blocks looks better on it than it is. Three permutations, which leave every logit where it
was, mix the blocks: one of the hidden dimension, everywhere that the residual stream is read or written; one of each
MLP's inner dimension; and one of each value head's inner dimension, undone by the columns of the output projection.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from edge_svd.architectures import Architecture
from edge_svd.errors import EdgeSvdError, Failure, InputError
from edge_svd.files import atomic_write
from edge_svd.models import open_model

PROMPT = "The history of the city of Rome begins"
# fp32 sums in another order; a wrong permutation is off by whole units.
LIMIT = 1e-2


def permute(model: Any, architecture: Architecture, seed: int) -> None:
    """Permutes a transformers decoder in place. Raises InputError where it is not a plain one (fused, with biases)."""
    names = {name for name, _ in model.named_parameters()}
    if architecture.fused_qkv or architecture.fused_gate_up or any(name.endswith(".bias") for name in names):
        raise InputError(f"A {architecture.family} model with fused projections or biases cannot be permuted yet.")
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(architecture.hidden_size, generator=generator)

    def move(name: str, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
        parameter = model.get_parameter(name)
        value = parameter.detach()
        value = value if rows is None else value[rows]
        parameter.data = (value if columns is None else value[:, columns]).contiguous()

    for name in names:
        if name.endswith("norm.weight") and not name.endswith(("q_norm.weight", "k_norm.weight")):
            move(name, rows=hidden)
    move("model.embed_tokens.weight", columns=hidden)
    if not architecture.tied_embeddings:
        move("lm_head.weight", columns=hidden)
    for layer in range(architecture.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        inner = torch.randperm(architecture.intermediate_size, generator=generator)
        rows, columns = value_permutation(architecture, generator)
        move(f"{attention}.q_proj.weight", columns=hidden)
        move(f"{attention}.k_proj.weight", columns=hidden)
        move(f"{attention}.v_proj.weight", rows=rows, columns=hidden)
        move(f"{attention}.o_proj.weight", rows=hidden, columns=columns)
        move(f"{mlp}.gate_proj.weight", rows=inner, columns=hidden)
        move(f"{mlp}.up_proj.weight", rows=inner, columns=hidden)
        move(f"{mlp}.down_proj.weight", rows=hidden, columns=inner)
    model.tie_weights()


def value_permutation(architecture: Architecture, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One permutation inside each value head: rows of v_proj, and the columns of o_proj for the heads that share it."""
    width, shared = architecture.head_dim, architecture.num_heads // architecture.num_kv_heads
    orders = [torch.randperm(width, generator=generator) for _ in range(architecture.num_kv_heads)]
    rows = torch.cat([head * width + order for head, order in enumerate(orders)])
    columns = torch.cat([head * width + orders[head // shared] for head in range(architecture.num_heads)])
    return rows, columns


def main(arguments: list[str] | None = None) -> int:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a hub id, a folder, a .gguf file or smollm2-demo")
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.out.exists():
            raise InputError(f"The output folder {options.out} exists already; name a new one.")
        opened = open_model(options.model)
        tokens = torch.tensor([opened.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            before = opened.model(tokens).logits
            permute(opened.model, opened.architecture, options.seed)
            difference = float((opened.model(tokens).logits - before).abs().max())
        if not difference < LIMIT:
            raise Failure(f"The permuted model's logits differ by {difference:.2g}, so it does not compute the same.")
        partial = options.out.with_name(options.out.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: parameter.detach() for name, parameter in opened.model.named_parameters()},
            partial / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in opened.companions.items():
            atomic_write(partial / name, content)
        partial.rename(options.out)
    except EdgeSvdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: logits differ by at most {difference:.1e} on {tokens.shape[1]} positions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
