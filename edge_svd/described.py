"""A model of any kind: what planning, storing and exporting accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_svd.architectures import Architecture
from edge_svd.encoders.architecture import FAMILIES, Encoder

Described = Architecture | Encoder


def described(value: Any) -> Described:
    """Strict inverse of either kind's `to_json`; InputError on anything else."""
    if isinstance(value, Mapping) and value.get("family") in FAMILIES:
        return Encoder.from_json(value)
    return Architecture.from_json(value)
