"""Numeric kernels: each has a plain torch reference, some a Triton version, and `dispatch` chooses between them."""

from __future__ import annotations
