"""Kernels that any thread may launch."""

from __future__ import annotations

import threading
from typing import Any

import triton

from edge_svd.kernels.dispatch import interpreted

# Triton's interpreter replaces the functions of triton.language while it runs a kernel, and for every thread.
_INTERPRETER = threading.Lock()


class _OneAtATime:
    """A kernel of the interpreter, launched as any other: `kernel[grid](...)`."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            with _INTERPRETER:
                self._kernel[grid](*arguments, **options)

        return launch


def kernel(function: Any) -> Any:
    """`triton.jit` of what is launched from Python; in the interpreter, one launch at a time."""
    made = triton.jit(function)
    return _OneAtATime(made) if interpreted() else made
