"""What a plan must meet, and under which circumstances its memory and speed are predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edge_svd.architectures import Site, sites_of
from edge_svd.described import Described
from edge_svd.devices import Profile
from edge_svd.errors import InputError
from edge_svd.files import format_size
from edge_svd.formats import SiteFormat
from edge_svd.planner.memory import (
    Load,
    Memory,
    loaded_bytes,
    loading_memory,
    matrix_bytes,
    peak_memory,
    running_memory,
    table_bytes,
)
from edge_svd.planner.speed import (
    decode_seconds,
    matrix_seconds,
    merged_seconds,
    multiplied,
    prefill_seconds,
    prompt_matrix_seconds,
)

SPEED_CONTEXT = 512
"""Cached tokens at which decoding is predicted, and measured by `fit`; half the context where that is shorter."""


@dataclass(frozen=True)
class Targets:
    """Limits of a plan, None where there is none: bytes of the folder, peak resident bytes, tokens a second that are
    decoded, and of a prompt."""

    file_bytes: int | None = None
    peak_rss_bytes: int | None = None
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.file_bytes is None and self.peak_rss_bytes is None:
            raise InputError("A plan needs a budget: give a size, an amount of memory (--ram), or both.")
        for what, speed in (("decoding", self.decode_tokens_per_s), ("prompt", self.prefill_tokens_per_s)):
            if speed is not None and not (math.isfinite(speed) and speed > 0):
                raise InputError(
                    f"The {what} speed to reach must be a positive number of tokens a second, not {speed}."
                )

    @property
    def resident(self) -> bool:
        """Whether memory or time is limited, not the size alone."""
        speeds = (self.decode_tokens_per_s, self.prefill_tokens_per_s)
        return self.peak_rss_bytes is not None or any(speed is not None for speed in speeds)

    def to_json(self) -> dict[str, Any]:
        prompts = {} if self.prefill_tokens_per_s is None else {"prefill_tokens_per_s": self.prefill_tokens_per_s}
        return {
            "file_bytes": self.file_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            **prompts,
        }

    def words(self, without: str = "") -> str:
        """As a person says them, but for the field `without`."""
        said = []
        if self.file_bytes is not None and without != "file_bytes":
            said.append(f"a size of {format_size(self.file_bytes)}")
        if self.peak_rss_bytes is not None and without != "peak_rss_bytes":
            said.append(f"a peak of {format_size(self.peak_rss_bytes)} of memory")
        if self.decode_tokens_per_s is not None and without != "decode_tokens_per_s":
            said.append(f"{self.decode_tokens_per_s:g} tokens/s")
        if self.prefill_tokens_per_s is not None and without != "prefill_tokens_per_s":
            said.append(f"prompts at {self.prefill_tokens_per_s:g} tokens/s")
        return " and ".join(said)


@dataclass(frozen=True)
class Setting:
    """The model's shape, the device and the load that predictions are made for; `cache_loss`: what the load's kind of
    KV cache loses, nats per token."""

    architecture: Described
    profile: Profile
    load: Load
    cache_loss: float = 0.0

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """Matrices of their own, by name."""
        return {site.name: site for site in sites_of(self.architecture) if not site.tied_to}

    @property
    def speed_context(self) -> int:
        """Cached tokens at which decoding is predicted."""
        return min(SPEED_CONTEXT, self.load.context // 2)

    def memory(self, formats: Mapping[str, SiteFormat]) -> Memory:
        """Predicted peak of a process that runs these formats and fills the context."""
        return peak_memory(self.architecture, formats, self.profile.memory, self.load)

    def seconds(self, formats: Mapping[str, SiteFormat]) -> float:
        """Predicted seconds a token."""
        return decode_seconds(self.architecture, formats, self.profile, self.speed_context)

    def running(self, formats: Mapping[str, SiteFormat]) -> int:
        """Predicted bytes at the end of a full context, one of the two peaks."""
        return running_memory(self.architecture, formats, self.profile.memory, self.load).total

    def loading(self, formats: Mapping[str, SiteFormat]) -> int:
        """Predicted bytes at the other one."""
        return loading_memory(self.architecture, formats, self.profile.memory, self.load).total

    def loading_bytes(self, name: str, fmt: SiteFormat) -> int:
        """What one matrix adds to the peak of loading."""
        return self.resident_bytes(name, fmt) + loaded_bytes(self.architecture, self.sites[name], fmt)

    def resident_bytes(self, name: str, fmt: SiteFormat) -> int:
        """What one matrix adds to the peak of a full context."""
        site, costs = self.sites[name], self.profile.memory
        if site.type == "embedding":
            return table_bytes(self.architecture, site.shape, fmt, costs)
        return matrix_bytes(site.shape, fmt, costs)

    def prefill(self, formats: Mapping[str, SiteFormat]) -> float | None:
        """Predicted seconds a token of a prompt, None where the profile says nothing of prompts."""
        return prefill_seconds(self.architecture, formats, self.profile)

    def prompt_nanoseconds(self, name: str, fmt: SiteFormat) -> int:
        """What one matrix adds to a prompt token's time, in whole nanoseconds."""
        return round(1e9 * prompt_matrix_seconds(self.sites[name], fmt, self.profile))

    @cached_property
    def merged_nanoseconds(self) -> int:
        """What every matrix that is computed in the product of another one saves a token."""
        return round(1e9 * merged_seconds(self.profile))

    def nanoseconds(self, name: str, fmt: SiteFormat) -> int:
        """What one matrix adds to a token's time, in whole nanoseconds."""
        site = self.sites[name]
        if not multiplied(site, self.architecture):
            return 0
        return round(1e9 * matrix_seconds(site.shape, fmt, self.profile))
