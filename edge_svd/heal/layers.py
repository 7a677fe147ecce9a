"""One decoder layer at a time, called as the model itself calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edge_svd.architectures import Architecture


class _Reached(Exception):
    """Ends a forward pass where the rest of it is not wanted."""


def reaching(module: torch.nn.Module, run: Callable[[], Any]) -> torch.Tensor | None:
    """The states that `run` hands to a module, where the pass then ends; None if it never comes there."""
    seen: list[torch.Tensor] = []

    def stop(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(_states(arguments, named))
        raise _Reached

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            run()
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    return None


def _states(arguments: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    states: torch.Tensor = arguments[0] if arguments else named["hidden_states"]
    return states.detach()


class Layers:
    """The layers of a decoder, each with the arguments (rotary factors, masks) that the model hands to it."""

    def __init__(self, model: Any, architecture: Architecture, ids: torch.Tensor) -> None:
        """ids: int64 [batch, length], of the shape that hidden states will have."""
        self.body = model.get_submodule(architecture.layout.body)
        self.layers = model.get_submodule(architecture.layout.layers)
        self._rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._rest.append((arguments[1:], {key: value for key, value in named.items() if key != "hidden_states"}))

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self.layers]
        try:
            with torch.inference_mode():
                self.body(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def entering(self, ids: torch.Tensor) -> torch.Tensor:
        """What enters the first layer, [batch, length, hidden]."""
        states = reaching(self.layers[0], lambda: self.body(input_ids=ids, use_cache=False))
        assert states is not None  # a decoder calls its layers
        return states

    def __call__(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Layer `number` with the modules that stand there now: hidden states [batch, length, hidden] → the same."""
        rest, named = self._rest[number]
        with torch.inference_mode():
            found = self.layers[number](hidden, *rest, **named)
        return found[0] if isinstance(found, tuple) else found
