"""Load a compressed checkpoint as a transformers model that computes in fp32 with the rounded numbers that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.architectures import Architecture, Site, norms_of
from edge_svd.checkpoint import Checkpoint
from edge_svd.conv1d import without_conv1d
from edge_svd.encoders.architecture import Encoder
from edge_svd.encoders.loading import place_tables
from edge_svd.factored import ComponentLinear, FactoredLinear
from edge_svd.formats import BLOCKED, CODED, PIVOTED, PLANES
from edge_svd.kernels.block_rounding import BlockGrid
from edge_svd.kernels.rank_components import Components, Part
from edge_svd.quantize.blocks import Blocked, unpack_blocks
from edge_svd.quantize.components import from_low
from edge_svd.quantize.trellis import decode, unpack
from edge_svd.rotation import place_rotation
from edge_svd.trellis_code import trellis_code


def load(path: Path | str, *, components: bool = False) -> Any:
    """The model of a checkpoint folder, fp32, eval mode, without gradients; factored matrices are `FactoredLinear`.

    components: matrices of rank components stay as they are stored and are `ComponentLinear`; computes the same, in
    less memory, and on a CUDA card faster.

    Raises:
        InputError: the folder is not a checkpoint, or a tensor is missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = Checkpoint.open(path)
    config = AutoConfig.from_pretrained(checkpoint.path / "companions", local_files_only=True)
    if isinstance(checkpoint.architecture, Encoder):
        return _encoder(checkpoint, config, checkpoint.architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    attention = "eager" if checkpoint.architecture.attention_softcap else "sdpa"
    without_conv1d(model).set_attn_implementation(attention)
    architecture = checkpoint.architecture
    if architecture.head_rotation:
        place_rotation(model, architecture)
    for site in checkpoint.sites:
        if not site.tied_to:
            _place(model, checkpoint, site, components)
    if architecture.tied_embeddings:
        model.lm_head.weight = model.get_submodule(architecture.layout.embedding).weight
    offset = np.float32(1.0 if checkpoint.architecture.family.startswith("gemma") else 0.0)
    for name in norms_of(architecture):
        _set(model, name, torch.from_numpy(checkpoint.tensor(name) - offset))
    if checkpoint.architecture.learned_positions:
        names = checkpoint.architecture.layout
        table = torch.from_numpy(checkpoint.tensor(f"{names.positions}.weight").astype(np.float32))
        # Rows before that of position 0 belong to padding, which nothing attends to.
        _set(model, f"{names.positions}.weight", torch.nn.functional.pad(table, (0, 0, names.first_position, 0)))
    return _with_buffers(model, config, checkpoint)


def _encoder(checkpoint: Checkpoint, config: Any, encoder: Encoder) -> Any:
    from transformers import BertModel

    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    model.set_attn_implementation("sdpa")
    for site in checkpoint.sites:
        _place(model, checkpoint, site)
    place_tables(model, checkpoint, encoder)
    return model.eval()


def dense_parts(checkpoint: Checkpoint, site: Site) -> tuple[torch.Tensor, ...]:
    """(W [m, n],) or (B [m, k], A [k, n]) in fp32, without padding; scales are folded into A."""
    fmt, n = checkpoint.formats[site.name], site.shape[1]

    def read(suffix: str) -> torch.Tensor:
        return torch.from_numpy(checkpoint.tensor(f"{site.name}.{suffix}").astype(np.float32))

    if fmt.kind in CODED:
        matrix = coded_levels(checkpoint, site).float() * read("s8")[:, None]
        return ((matrix * read("c8") if fmt.rows else matrix)[:, :n].contiguous(),)
    if fmt.kind in BLOCKED:
        matrix = blocked(checkpoint, site).matrix()
        if fmt.k8:
            matrix += ((read("b8") * read("t8")) @ read("a8"))[:, :n]
        return (matrix.contiguous(),)
    if not fmt.factored:
        bits = 8 if fmt.kind == "int8" else 16
        return ((read(f"q{bits}") * read(f"s{bits}")[:, None])[:, :n].contiguous(),)
    if fmt.kind in PIVOTED:
        order = torch.from_numpy(checkpoint.tensor(f"{site.name}.order").astype(np.int64))
        c = read("c8") * read("t8")[:, None]
        if fmt.kind == "row-pivoted":
            a = (read("a8") * read("s8")[:, None])[:, :n].contiguous()
            return torch.cat([torch.eye(fmt.k8), c])[order], a
        a = torch.cat([torch.eye(fmt.k8), c], dim=1)[:, torch.argsort(order)]
        return read("b8") * read("s8")[:, None], a[:, :n].contiguous()

    parts = stored_components(checkpoint, site).parts
    b = torch.cat([part.b.float().T for part in parts], dim=1)
    return b, torch.cat([part.a.float() if part.scale is None else part.a * part.scale[:, None] for part in parts])


def stored_components(checkpoint: Checkpoint, site: Site) -> Components:
    """The rank components of a low-rank matrix, without padding: those of 4 and 8 bits in int8, those of 16 in fp32."""
    fmt, n = checkpoint.formats[site.name], site.shape[1]
    parts = []
    for bits in (bits for bits, rank in ((4, fmt.k4), (8, fmt.k8), (16, fmt.k16)) if rank):
        b, a = (torch.from_numpy(checkpoint.tensor(f"{site.name}.{letter}{bits}")) for letter in "ba")
        if bits == 4:
            b, a = from_low(b), from_low(a)
        scale = torch.from_numpy(checkpoint.tensor(f"{site.name}.s{bits}").astype(np.float32))
        a, b = a[:, :n].contiguous(), b.T.contiguous()
        parts.append(Part(a.float() * scale[:, None], b.float()) if bits == 16 else Part(a, b, scale))
    return Components(tuple(parts))


def coded_levels(checkpoint: Checkpoint, site: Site) -> torch.Tensor:
    """int8 [m, padded n] of a trellis-coded matrix or table."""
    fmt = checkpoint.formats[site.name]
    groups = fmt.rows or ((fmt.bits, site.shape[0]),)
    decoded = []
    for bits, _ in groups:
        prefix = f"g{bits}" if fmt.rows else ""
        planes = {f"p{width}": checkpoint.tensor(f"{site.name}.{prefix}p{width}") for width in PLANES[bits]}
        decoded.append(decode(unpack(planes, bits), trellis_code(bits)))
    levels = np.concatenate(decoded)[:, checkpoint.tensor(f"{site.name}.order")]
    return torch.from_numpy(levels[checkpoint.tensor(f"{site.name}.place")] if fmt.rows else levels)


def blocked(checkpoint: Checkpoint, site: Site) -> Blocked:
    """A matrix in blocks, from its stored integers."""
    fmt, count = checkpoint.formats[site.name], site.shape[1] // checkpoint.formats[site.name].block

    def read(suffix: str) -> torch.Tensor:
        return torch.from_numpy(checkpoint.tensor(f"{site.name}.{suffix}"))

    row = torch.from_numpy(checkpoint.tensor(f"{site.name}.s8").astype(np.float32)).to(torch.bfloat16)
    if fmt.zero:
        zero = unpack_blocks(read("z"), fmt.bits)[:, :count]
    else:
        zero = torch.full((site.shape[0], count), 2 ** (fmt.bits - 1), dtype=torch.uint8)
    return Blocked(unpack_blocks(read("q"), fmt.bits), BlockGrid(row, read("u8"), zero, fmt.bits, fmt.block))


def _place(model: Any, checkpoint: Checkpoint, site: Site, components: bool = False) -> None:
    bias = torch.from_numpy(checkpoint.tensor(f"{site.name}.bias")) if site.bias else None
    parent, _, leaf = site.name.rpartition(".")
    if components and checkpoint.formats[site.name].kind == "low-rank":
        setattr(model.get_submodule(parent), leaf, ComponentLinear(stored_components(checkpoint, site), bias))
        return
    parts = dense_parts(checkpoint, site)
    if len(parts) == 2:
        setattr(model.get_submodule(parent), leaf, FactoredLinear(*parts, bias))
        return
    _set(model, f"{site.name}.weight", parts[0])
    if bias is not None:
        _set(model, f"{site.name}.bias", bias)


def _set(model: Any, name: str, tensor: torch.Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor.float(), requires_grad=False))


def _mask(key: str, buffer: torch.Tensor) -> torch.Tensor:
    """What GPT-2's attention keeps beside its weights: who may look at whom, and the score of who may not."""
    if key == "masked_bias":
        return torch.tensor(-1e4)
    return torch.ones(buffer.shape, dtype=torch.bool).tril()


def _with_buffers(model: Any, config: Any, checkpoint: Checkpoint) -> Any:
    """Buffers (rotary frequencies, embedding scales) are not parameters; rebuild the few modules that hold them."""
    for name, module in list(model.named_modules()):
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                parent, _, leaf = name.rpartition(".")
                if leaf.startswith("rotary_emb"):
                    table = "local" if leaf.endswith("local") or key.startswith("sliding") else "global"
                    frequencies = torch.from_numpy(checkpoint.tensor(f"rotary.{table}.inv_freq"))
                    module.register_buffer(key, frequencies.clone(), persistent=False)
                elif leaf == "attn" and key in ("bias", "masked_bias"):
                    module.register_buffer(key, _mask(key, buffer), persistent=False)
                elif key == "embed_scale" and isinstance(checkpoint.architecture, Architecture):
                    module.register_buffer(
                        key, torch.tensor(checkpoint.architecture.embedding_multiplier), persistent=False
                    )
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            module.original_inv_freq = module.inv_freq
    return model.eval()
