"""The ways of healing by name, and what they work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from edge_svd.architectures import Architecture
from edge_svd.errors import InputError
from edge_svd.factored import Factors
from edge_svd.registry import Registry, parametrised

NONE = "none"
"""Factors as the decomposition made them."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Patient:
    """A dense model and the calibration text that its factored form may be fitted to.

    model: a transformers decoder, fp32, untouched by healing. windows: int64 [count, length]. seed: of everything that
    draws.
    """

    model: Any
    architecture: Architecture
    windows: torch.Tensor
    seed: int = 0
    _states: dict[int, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def dense_states(self, window: int) -> torch.Tensor:
        """Last hidden states [length, hidden] of the dense model in one window, computed once for all that is healed;
        to be asked for while the model is dense."""
        if window not in self._states:
            body = self.model.get_submodule(self.architecture.layout.body)
            with torch.no_grad():
                self._states[window] = body(input_ids=self.windows[window, None], use_cache=False).last_hidden_state[0]
        return self._states[window]


class Healing(Protocol):
    """Factors of some of a model's matrices → better ones of the same ranks."""

    def __call__(self, patient: Patient, factors: Mapping[str, Factors], progress: Progress) -> dict[str, Factors]: ...


HEALINGS: Registry[Callable[..., Healing]] = Registry("way of healing")
"""Dataclasses whose fields are the parameters."""


def healing(text: str) -> list[tuple[str, Healing]]:
    """The steps of `refit+distil:steps=300`, each under its name; none for `none`.

    Raises InputError that lists the known names or parameters, or says which value is out of range.
    """
    parts = [part.strip() for part in text.split("+")]
    if parts == [NONE]:
        return []
    if not all(parts):
        raise InputError(f"{text!r} names no way of healing; known: {', '.join([NONE, *HEALINGS.names])}, joined by +.")
    return [(part, parametrised(HEALINGS, part)) for part in parts]
