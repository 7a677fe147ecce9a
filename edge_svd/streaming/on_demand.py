"""A transformers model whose weights stay in their files; a layer's become fp32 while it computes, and go again.

Forward passes work as with any other model. A backward pass reads weights again when the layers behind have long
dropped theirs, so it goes layer by layer (`streaming.walk`); one through the whole model is refused where weights are
not stored in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.errors import InputError
from edge_svd.layouts import Layout
from edge_svd.streaming.mapped_files import MappedFiles

MARK = "edge_svd_streamed"


def is_streamed(model: Any) -> bool:
    """Whether a model's weights lie in files."""
    return bool(getattr(model, MARK, False))


def streamed_model(make: Callable[[], Any], files: MappedFiles, layout: Layout, where: str) -> Any:
    """What `make` builds, without gradients, its parameters mapped from files.

    Raises:
        InputError: a tensor is missing or of another shape than the configuration says, naming it; `where` is what
            messages call the source.
    """
    with _without_weights():
        model = make()
    model.eval()
    prefix = f"{model.base_model_prefix}."
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    big = (f"{layout.layers}.", f"{layout.embedding}.", "lm_head.")
    for name, parameter in list(model.named_parameters()):
        stored = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in files.places), None)
        if stored is None:
            if name in tied:
                continue
            raise InputError(f"{where} lacks the tensor {name}.")
        tensor = files.tensor(stored)
        if tensor.shape != parameter.shape:
            raise InputError(
                f"{where} holds the tensor {name} as {list(tensor.shape)} where its config.json says "
                f"{list(parameter.shape)}."
            )
        owner, _, leaf = name.rpartition(".")
        kept = tensor if name.startswith(big) else tensor.float().clone()
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(kept, requires_grad=False))
    model.tie_weights()
    setattr(model, MARK, True)
    return model


def compute_on_demand(model: Any, layout: Layout) -> None:
    """Have every layer, and the head, take its weights from the files while it computes; the embedding looks up in
    the file itself."""
    embedding = model.get_submodule(layout.embedding)
    embedding.register_forward_hook(lambda _, __, output: output.float())
    for module in (*model.get_submodule(layout.layers), model.lm_head):
        _hook(module)


@contextmanager
def resident(module: Any) -> Iterator[None]:
    """All weights of a module in fp32, for as long as this is open."""
    mapped = _to_memory(module)
    try:
        yield
    finally:
        _to_files(mapped)


def _hook(module: Any) -> None:
    taken: list[list[tuple[torch.nn.Parameter, torch.Tensor]]] = []

    def before(owner: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if "forward" in vars(owner):  # somebody has put something else in its place, which needs no weights
            taken.append([])
            return
        taken.append(_to_memory(owner))
        inputs = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
        if taken[-1] and torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            _to_files(taken.pop())
            raise InputError(
                "This needs gradients through the whole model, whose weights do not fit into memory; it works for "
                "smaller models only."
            )

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(lambda *_: _to_files(taken.pop()) if taken else None, always_call=True)


def _to_memory(module: Any) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    mapped = [(p, p.data) for p in module.parameters() if p.dtype != torch.float32 or not p.data.is_contiguous()]
    for parameter, tensor in mapped:
        parameter.data = tensor.to(torch.float32).contiguous()
    return mapped


def _to_files(mapped: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for parameter, tensor in mapped:
        parameter.data = tensor


@contextmanager
def _without_weights() -> Iterator[None]:
    """New modules get parameters without memory; buffers are made as always."""
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        """What modules ask for without saying what it shall hold are their weights. Even memory that is never touched
        and soon given back counts against a limit, as pieces of it stay with the C library."""

        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            keywords = dict(keywords or {})
            if function is torch.empty:
                keywords["device"] = "meta"
            return function(*arguments, **keywords)

    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.data.to("meta"), requires_grad=False)
        original(module, name, parameter)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        with Unfilled():
            yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]
