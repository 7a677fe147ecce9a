"""A linear layer kept as two factors, and a model with such layers in the place of its own for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from edge_svd.kernels.factored_linear import factored_linear
from edge_svd.kernels.rank_components import Components, Part

Factors: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""b [m, k] and a [k, n], fp32."""


class FactoredLinear(torch.nn.Module):
    """y = B (A x) + bias: `b` [m, k], `a` [k, n] fp32, x [..., n]."""

    def __init__(self, b: torch.Tensor, a: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.b = torch.nn.Parameter(b, requires_grad=False)
        self.a = torch.nn.Parameter(a, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b, self.bias)


class ComponentLinear(torch.nn.Module):
    """y = B (A x) + bias from rank components as they are stored, some in int8 (`kernels.factored_linear`).

    A quarter of the memory of `FactoredLinear`, and on a CUDA card of its traffic; plain torch writes int8 out as fp32
    at every call, so on a CPU it is the slower of the two.
    """

    bias: torch.Tensor | None

    def __init__(self, components: Components, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.count = len(components.parts)
        for number, part in enumerate(components.parts):
            self.register_buffer(f"a{number}", part.a)
            self.register_buffer(f"b{number}", part.b)
            self.register_buffer(f"scale{number}", part.scale)
        self.register_buffer("bias", bias)

    @property
    def components(self) -> Components:
        """The components, wherever the module has been moved."""
        names = range(self.count)
        return Components(
            tuple(Part(getattr(self, f"a{i}"), getattr(self, f"b{i}"), getattr(self, f"scale{i}")) for i in names)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = factored_linear(x.reshape(-1, x.shape[-1]), self.components, self.bias)
        return made.view(*x.shape[:-1], made.shape[-1])


@contextmanager
def factored(model: Any, factors: Mapping[str, Factors]) -> Iterator[dict[str, FactoredLinear]]:
    """Put factors in the place of named linear modules for a while, at the cost of their ranks instead of the whole
    matrices'; biases stay. The original modules come back untouched."""
    originals = {name: model.get_submodule(name) for name in factors}
    made = {}
    for name, (b, a) in factors.items():
        device = originals[name].weight.device
        made[name] = FactoredLinear(b.to(device), a.to(device), originals[name].bias)
    try:
        for name, module in made.items():
            model.set_submodule(name, module)
        yield made
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
