"""The measure of every prediction: the KL of the model with other weights to the dense one, on held-out windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from edge_svd.architectures import Architecture
from edge_svd.calibrate.collect import logits_of
from edge_svd.errors import Failure

WINDOWS, FEW_WINDOWS, HALF_WINDOWS = 6, 3, 4
"""Held-out windows of a measurement; of one whose loss is large against its noise, and of what single matrices of a
type have of its loss; and half windows of one of a single matrix, which is in fp32, because what bfloat16 adds would
drown it: more of them, because windows differ more than their halves do."""

BATCH = 3
POSITIONS_EVERY = 4
"""Not the first: it is unlike all others, and would count that many times."""


class Measure(Protocol):
    """A loss against the dense model, with the weights as they are now."""

    def measure(self, windows: int = WINDOWS) -> float: ...


class HeldOutKl:
    """KL(dense ‖ current weights) on a few held-out windows, at every fourth position, in nats per token.

    Computed where the model is. The layers compute in `precision`, on both sides of the divergence; logits are always
    fp32. `cache`, set after the dense side is known, makes a transformers cache whose keys and values attention is to
    read.
    """

    def __init__(
        self, model: Any, windows: torch.Tensor, architecture: Architecture, precision: str = "float32"
    ) -> None:
        self.model, self.windows, self.architecture = model, windows[:WINDOWS], architecture
        self.cache: Callable[[], Any] | None = None
        self.half = precision == "bfloat16"
        self.dense = [p.to(torch.float16) for p in self._log_probabilities()]

    def _log_probabilities(self, windows: int = WINDOWS) -> Iterator[torch.Tensor]:
        body = self.model.get_submodule(self.architecture.layout.body)
        device = self.model.device
        for ids in self.windows[:windows].to(device).split(BATCH):
            with torch.inference_mode():
                # Every weight is used once: the cache would only keep all of them in bfloat16.
                with torch.autocast(device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
                    hidden = body(input_ids=ids, **self._caching()).last_hidden_state
                for states in hidden[:, POSITIONS_EVERY - 1 :: POSITIONS_EVERY].float():
                    yield torch.log_softmax(logits_of(self.model, states, self.architecture)[0], dim=-1)

    def _caching(self) -> dict[str, Any]:
        return {"use_cache": False} if self.cache is None else {"past_key_values": self.cache(), "use_cache": True}

    def measure(self, windows: int = WINDOWS) -> float:
        """The divergence with the model's weights as they are now; Failure if it is not finite."""
        total, positions = 0.0, 0
        for dense, current in zip(self.dense[:windows], self._log_probabilities(windows), strict=True):
            p = dense.to(current.device).float()
            total += float((p.exp() * (p - current)).sum(dtype=torch.float64))
            positions += len(p)
        if not total < float("inf"):
            raise Failure("The perturbed model gives NaN or Inf on the held-out calibration windows.")
        return max(total / positions, 0.0)


@contextmanager
def replaced(model: Any, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put other weights into named modules for a while; the originals come back untouched."""
    modules = {name: model.get_submodule(name) for name in weights}
    originals = {name: module.weight.data for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.weight.data = weights[name].to(originals[name].device)
        yield
    finally:
        for name, module in modules.items():
            module.weight.data = originals[name]
