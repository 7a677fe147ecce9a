"""A decoder taken apart: what is before its layers, single layers, and what is behind them.

What a layer is given beside the hidden states (masks, rotary tables) depends on its family alone and on the length of
the window, so it is noted once from a pass in which every layer hands its input on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.architectures import Architecture
from edge_svd.streaming.on_demand import resident

Forward = Callable[..., Any]


class Apart:
    """For windows of one length."""

    def __init__(self, model: Any, architecture: Architecture, ids: torch.Tensor) -> None:
        """ids: [tokens], any window."""
        self.body = model.get_submodule(architecture.layout.body)
        self.layers = list(model.get_submodule(architecture.layout.layers))
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._tuples = False

        def noting(number: int, original: Forward) -> Forward:
            def forward(*arguments: Any, **named: Any) -> Any:
                named = dict(named)
                states = arguments[0] if arguments else named.pop("hidden_states")
                self._given.append((arguments[1:], named))
                if number > 0:
                    return (states,) if self._tuples else states
                with resident(self.layers[0]):
                    output = original(states, *arguments[1:], **named)
                self._tuples = isinstance(output, tuple)  # some families hand on more than the hidden states
                return output

            return forward

        with self._instead(noting), torch.no_grad():
            self.body(input_ids=ids[None], use_cache=False)

    @contextmanager
    def _instead(self, make: Callable[[int, Forward], Forward]) -> Iterator[None]:
        originals = [layer.forward for layer in self.layers]
        for number, layer in enumerate(self.layers):
            layer.forward = make(number, originals[number])
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward  # the class's own shows again

    def entering(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first layer is given for a window [tokens]: [1, tokens, hidden]."""
        found: list[torch.Tensor] = []

        def passing(number: int, original: Forward) -> Forward:
            def forward(*arguments: Any, **named: Any) -> Any:
                states = arguments[0] if arguments else named["hidden_states"]
                if number == 0:
                    found.append(states)
                return (states,) if self._tuples else states

            return forward

        with self._instead(passing):
            self.body(input_ids=ids[None], use_cache=False)
        return found[0]

    def layer(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """What a layer makes of states [1, tokens, hidden]."""
        arguments, named = self._given[number]
        output = self.layers[number](states, *arguments, **named)
        made = output[0] if isinstance(output, tuple) else output
        assert isinstance(made, torch.Tensor)
        return made

    def leaving(self, ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The model's last hidden states [1, tokens, hidden], given what its last layer made."""

        def giving(number: int, original: Forward) -> Forward:
            def forward(*arguments: Any, **named: Any) -> Any:
                passed = arguments[0] if arguments else named["hidden_states"]
                given = states if number + 1 == len(self.layers) else passed
                return (given,) if self._tuples else given

            return forward

        with self._instead(giving):
            hidden = self.body(input_ids=ids[None], use_cache=False).last_hidden_state
        assert isinstance(hidden, torch.Tensor)
        return hidden
