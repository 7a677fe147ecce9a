"""One decoder layer at a time, called as the model itself calls it."""

from __future__ import annotations

from typing import Any

import torch

from edge_svd.architectures import Architecture


class Layers:
    """The layers of a decoder, each with the arguments (rotary factors, masks) that the model hands to it."""

    def __init__(self, model: Any, architecture: Architecture, ids: torch.Tensor) -> None:
        """ids: int64 [batch, length], of the shape that hidden states will have."""
        self.layers = model.get_submodule(architecture.layout.layers)
        self._rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        entering: list[torch.Tensor] = []

        def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            states = arguments[0] if arguments else named["hidden_states"]
            entering.append(states.detach())
            self._rest.append((arguments[1:], {key: value for key, value in named.items() if key != "hidden_states"}))

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self.layers]
        try:
            with torch.inference_mode():
                model.get_submodule(architecture.layout.body)(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.first = entering[0]
        """What enters the first layer, [batch, length, hidden]."""

    def __call__(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Layer `number` with the modules that stand there now: hidden states [batch, length, hidden] → the same."""
        rest, named = self._rest[number]
        with torch.inference_mode():
            found = self.layers[number](hidden, *rest, **named)
        return found[0] if isinstance(found, tuple) else found
