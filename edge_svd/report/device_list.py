"""`devices`: the profiles that can be named after --device."""

from __future__ import annotations

import dataclasses
from typing import Any

from edge_svd.devices import list_profiles
from edge_svd.files import format_size


def device_list() -> dict[str, Any]:
    """Every shipped profile, with all its fields."""
    return {"devices": [dataclasses.asdict(profile) for profile in list_profiles()]}


def device_text(found: dict[str, Any]) -> str:
    """The same for a person, one line a device."""
    rows = []
    for profile in found["devices"]:
        device = profile["device"]
        rows.append(
            f"{profile['name']:<24}{format_size(device['free_bytes']):>10} free of "
            f"{format_size(device['memory_bytes']):<10} from {profile['basis']:<13} {profile['summary']}"
        )
    return "\n".join(rows)
