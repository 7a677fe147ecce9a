"""A CUDA card that is not there: tensors in ordinary memory that say they are on one, and refuse to be mixed with
others, so that code for a card can be run, and its results compared, on any machine.

What it cannot show: speed, streams, and modules moved as a whole, whose parameters stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("cuda", 0)
MIXED = {"__getitem__", "__setitem__", "index_add_", "copy_"}
"""Take indices, or sources, from anywhere."""


class OnCard(torch.Tensor):
    """A tensor of the card."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any torch function, with the rules of a card."""
    if func is torch.device:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    name = getattr(func, "__name__", "")
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
    ours = [part for part in tensors if isinstance(part, OnCard)]
    if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
        return CARD if ours else torch.device("cpu")
    if ours and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
    asked = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.device)]
    asked += [torch.device(part) for part in (*args[1:], kwargs.get("device")) if part in ("cpu", "cuda", "cuda:0")]
    if name == "cpu":
        asked = [torch.device("cpu")]
    elif not asked and not name.startswith("new_") and name not in MIXED:
        strangers = [part for part in tensors if not isinstance(part, OnCard) and part.ndim]
        if ours and strangers:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found cuda:0 and cpu")
    args, kwargs = tree_map(_plain, (args, kwargs))
    with torch._C.DisableTorchFunction():
        found = func(*args, **kwargs)
    there = asked[-1].type == "cuda" if asked else bool(ours) if name != "__setitem__" else False
    return (
        tree_map(lambda part: part.as_subclass(OnCard) if isinstance(part, torch.Tensor) else part, found)
        if (there)
        else found
    )


def _plain(part: Any) -> Any:
    if isinstance(part, OnCard):
        return part.as_subclass(torch.Tensor)
    if isinstance(part, torch.device) or (isinstance(part, str) and part in ("cuda", "cuda:0")):
        return torch.device("cpu")
    return part


class Card(TorchFunctionMode):
    """Makes what is asked for on the card while it is entered."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


class InPlace:
    """An executor without threads: the mode that simulates the card belongs to one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> InPlace:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        found: Future[Any] = Future()
        found.set_result(work(*args))
        return found

    def map(self, work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
        return map(work, items)


@contextmanager
def simulated_card(free: int = 2**40) -> Iterator[None]:
    """Everything in between computes on a card with so many free bytes."""
    with pytest.MonkeyPatch.context() as patch, Card():
        patch.setenv("EDGE_SVD_DEVICE", "cuda")
        patch.setenv("EDGE_SVD_KERNELS", "reference")
        patch.setattr("edge_svd.parallel.ThreadPoolExecutor", InPlace)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))
        yield
