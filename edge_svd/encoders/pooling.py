"""From token ids to the embedding of a passage, in torch."""

from __future__ import annotations

from typing import Any

import torch

PADDING = -1
"""In a batch of passages: no token. No id of a vocabulary means that, so that padding cannot be mistaken for text."""


def hidden_states(model: Any, passages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [batch, length] with PADDING → last hidden states [batch, length, hidden] and mask [batch, length]."""
    mask = passages != PADDING
    ids = torch.where(mask, passages, int(model.config.pad_token_id or 0))
    return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Embeddings [batch, hidden] of length one; differentiable, and blind to masked positions."""
    if pooling == "cls":
        found = hidden[:, 0]
    else:
        share = mask.to(hidden.dtype)
        found = (hidden * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp_min(1)
    return torch.nn.functional.normalize(found, dim=-1)


def embeddings(model: Any, passages: torch.Tensor, pooling: str, batch: int = 32) -> torch.Tensor:
    """Embeddings float32 [count, hidden] of passages int64 [count, length], without gradients."""
    lengths = (passages != PADDING).sum(1)
    order = torch.argsort(lengths, stable=True)
    found = torch.empty(len(passages), model.config.hidden_size)
    with torch.inference_mode():
        for rows in order.split(batch):
            # Of like length, so that little padding is computed.
            own = passages[rows, : int(lengths[rows].max())]
            found[rows] = pooled(*hidden_states(model, own), pooling)
    return found
