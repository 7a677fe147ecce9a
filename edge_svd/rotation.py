"""A model whose residual stream is turned by an orthogonal matrix: it computes the same, its activations have no peaks.

    h' = h R    W_in' = W_in diag(g) R    W_out' = Rᵀ W_out    E' = E R    norms without weights

(QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4, stage 1a; SliceGPT, arXiv 2401.15024, section 3.) What an
RMS norm gives is then spread evenly over all its entries and of one length for every token, so that a whole prompt can
share one activation scale. A head that is tied to the embedding cannot take up the last norm's weights g and still be
E R: it reads the last norm through a matrix of its own, Rᵀ diag(g) R.

Nothing is rotated while the model runs, so what `down` reads stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from edge_svd.architectures import Architecture, sites_of
from edge_svd.errors import InputError
from edge_svd.layouts import ROTATION
from edge_svd.models import OpenedModel
from edge_svd.streaming.on_demand import is_streamed

SEED = 0
IN_ATTENTION = ("q", "k", "v", "qkv")
OUT = ("o", "down")


def rotated(opened: OpenedModel) -> OpenedModel:
    """The same model, turned in place; its weights are other numbers, so digest and statistics are its own.

    Raises:
        InputError: the family has norms between a matrix and the residual stream, or norms that are not RMS norms.
    """
    a = opened.architecture
    if a.layer_norm or a.norms_after or not a.norms_before or a.learned_positions:
        raise InputError(
            f"{opened.name} cannot be rotated: a {a.family} model does not read its residual stream through RMS norms "
            "alone; leave out --rotate."
        )
    if is_streamed(opened.model):
        raise InputError(
            f"{opened.name} does not fit into memory, where it would have to be rotated; leave out --rotate."
        )
    if a.head_rotation:
        raise InputError(f"{opened.name} is rotated already.")
    turned = replace(a, head_rotation=a.tied_embeddings)
    _turn(opened.model, a)
    return replace(opened, architecture=turned)


def orthogonal(width: int) -> torch.Tensor:
    """float64 [width, width], always the same: a Hadamard matrix over the power of two that divides the width, a
    random orthogonal one over the rest, random signs."""
    generator = torch.Generator().manual_seed(SEED)
    odd = width
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while odd % 2 == 0:
        odd //= 2
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]) * 0.5**0.5
    basis, upper = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))
    basis = basis * upper.diagonal().sign()
    signs = torch.randint(0, 2, (width, 1), generator=generator) * 2.0 - 1.0
    return torch.kron(basis.contiguous(), hadamard.contiguous()) * signs


def place_rotation(model: Any, architecture: Architecture) -> None:
    """Give the last norm the matrix that its output passes before a tied head; its weight is not set yet."""
    norm = model.get_submodule(architecture.layout.final_norm)
    width = architecture.hidden_size
    setattr(norm, ROTATION, torch.nn.Linear(width, width, bias=False, device="meta"))
    norm.register_forward_hook(lambda module, _, output: getattr(module, ROTATION)(output))


@torch.no_grad()
def _turn(model: Any, a: Architecture) -> None:
    r = orthogonal(a.hidden_size)
    plain = 0.0 if a.family.startswith("gemma") else 1.0  # Gemma multiplies by 1 + weight

    def gains(name: str) -> torch.Tensor:
        """The effective weights of a norm, which is left without any."""
        weight = model.get_parameter(f"{name}.weight")
        found = weight.double() + (1.0 - plain)
        weight.fill_(plain)
        return found

    for layer in range(a.num_layers):
        norms = {part: gains(a.layout.part(layer, f"before_{part}")) for part in ("attention", "mlp")}
        for site in (site for site in sites_of(a) if site.layer == layer):
            module = model.get_submodule(site.name)
            weight = module.weight.double()
            if site.type in OUT:
                weight = r.T @ weight
                if module.bias is not None:
                    module.bias.copy_(r.T @ module.bias.double())
            else:
                weight = weight * norms["attention" if site.type in IN_ATTENTION else "mlp"] @ r
            module.weight.copy_(weight)
    last = gains(a.layout.final_norm)
    embedding = model.get_submodule(a.layout.embedding).weight
    if a.tied_embeddings:
        place_rotation(model, a)
        matrix = torch.nn.Parameter((r.T * last @ r).T.contiguous().float(), requires_grad=False)
        getattr(model.get_submodule(a.layout.final_norm), ROTATION).weight = matrix
    else:
        _rows_turned(model.lm_head.weight, r, last)
    _rows_turned(embedding, r)


def _rows_turned(table: torch.Tensor, r: torch.Tensor, gains: torch.Tensor | None = None) -> None:
    """Rows of a vocabulary's table, some at a time: in double precision all of them may not fit."""
    for rows in table.split(8192):
        wide = rows.double() if gains is None else rows.double() * gains
        rows.copy_(wide @ r)
