"""An encoder's checkpoint as a transformers model that computes in fp32 with the rounded numbers that ship."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edge_svd.checkpoint import Checkpoint
from edge_svd.encoders.architecture import POSITIONS, TOKEN_TYPES, Encoder


def place_tables(model: Any, checkpoint: Checkpoint, encoder: Encoder) -> None:
    """Put everything but the matrices into a `BertModel` on the meta device: tables, norms and buffers."""

    def put(name: str, values: np.ndarray[Any, Any]) -> None:
        module, _, leaf = name.rpartition(".")
        tensor = torch.from_numpy(values.astype(np.float32))
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor, requires_grad=False))

    for name in encoder.norms:
        for part in ("weight", "bias"):
            put(f"{name}.{part}", checkpoint.tensor(f"{name}.{part}"))
    scale = checkpoint.tensor(f"{POSITIONS}.s8").astype(np.float32)
    put(f"{POSITIONS}.weight", checkpoint.tensor(f"{POSITIONS}.q8") * scale[:, None])
    put(TOKEN_TYPES, checkpoint.tensor(TOKEN_TYPES))
    embedding = model.embeddings
    embedding.register_buffer("position_ids", torch.arange(encoder.max_position)[None], persistent=False)
    zeros = torch.zeros(1, encoder.max_position, dtype=torch.long)
    embedding.register_buffer("token_type_ids", zeros, persistent=False)
