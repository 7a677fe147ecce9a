"""The plan: a small JSON file that says how every matrix is stored, what that costs and what it should lose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.architectures import Site
from edge_svd.errors import InputError
from edge_svd.files import canonical_json, read_json
from edge_svd.formats import FIELDS, KV_CACHES, SiteFormat, weight_bytes
from edge_svd.planner.memory import PARTS
from edge_svd.planner.targets import Targets

FORMAT = 3


@dataclass(frozen=True)
class Choice:
    """The format of one matrix, its bytes on disk and its predicted loss in nats per token."""

    format: SiteFormat
    bytes: int
    loss: float


@dataclass(frozen=True)
class Plan:
    """A complete plan.

    Attributes:
        source: name and digest of the model, digest of the statistics.
        method, allocation, candidates, seed: what made it.
        tune_steps: steps of distillation after rounding.
        context: KV-cache positions of the bundle; prompt_chunk: prompt tokens a pass.
        kv_cache: what the cache holds (`formats.KV_CACHES`); kv_cache_loss: what that loses, part of `kl`.
        device: name of the profile that memory and speed were predicted with.
        targets: what the plan had to meet.
        file_bytes: exact size of the bundle that follows.
        memory: predicted resident bytes at the peak, by part; `peak_rss_bytes` is their sum.
        decode_tokens_per_s: predicted, behind `Setting.speed_context` cached tokens.
        prefill_tokens_per_s: predicted of a prompt of 512 tokens; None where the device's profile says nothing of them.
        kl: predicted KL(dense ‖ compressed), nats per token.
        bound: lower bound of the solver's objective; gap: relative.
        sites: a choice for every matrix of its own, in forward order.
    """

    source: Mapping[str, str]
    method: str
    allocation: str
    candidates: tuple[str, ...]
    seed: int
    tune_steps: int
    context: int
    prompt_chunk: int
    device: str
    targets: Targets
    file_bytes: int
    memory: Mapping[str, int]
    decode_tokens_per_s: float
    kl: float
    bound: float
    gap: float
    sites: Mapping[str, Choice]
    kv_cache: str = "float32"
    kv_cache_loss: float = 0.0
    prefill_tokens_per_s: float | None = None

    @property
    def formats(self) -> dict[str, SiteFormat]:
        return {name: choice.format for name, choice in self.sites.items()}

    @property
    def peak_rss_bytes(self) -> int:
        """Predicted peak of a process that fills the context."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        prompts = self.prefill_tokens_per_s
        sites = {
            name: choice.format.to_json() | {"bytes": choice.bytes, "loss": _short(choice.loss)}
            for name, choice in self.sites.items()
        }
        return {
            "format": FORMAT,
            "source": dict(self.source),
            "method": self.method,
            "allocation": self.allocation,
            "candidates": list(self.candidates),
            "seed": self.seed,
            "tune_steps": self.tune_steps,
            "context": self.context,
            "prompt_chunk": self.prompt_chunk,
            "kv_cache": self.kv_cache,
            "device": self.device,
            "targets": self.targets.to_json(),
            "predicted": {
                "file_bytes": self.file_bytes,
                "peak_rss_bytes": self.peak_rss_bytes,
                "memory": dict(self.memory),
                "decode_tokens_per_s": _short(self.decode_tokens_per_s),
                "kl": _short(self.kl),
                "kv_cache_kl": _short(self.kv_cache_loss),
            }
            | ({} if prompts is None else {"prefill_tokens_per_s": _short(prompts)}),
            "solver": {"bound": _short(self.bound), "gap": _short(self.gap)},
            "sites": sites,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Plan:
        """Strict reader; InputError naming the first thing that is wrong."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f"{where} is not a plan of version {FORMAT}.")
        try:
            sites = {name: _choice(name, entry, where) for name, entry in value["sites"].items()}
            predicted, limits = value["predicted"], value["targets"]
            plan = cls(
                source={str(key): str(entry) for key, entry in value["source"].items()},
                method=_typed(value["method"], str),
                allocation=_typed(value["allocation"], str),
                candidates=tuple(_typed(name, str) for name in value["candidates"]),
                seed=_typed(value["seed"], int),
                tune_steps=_typed(value["tune_steps"], int),
                context=_typed(value["context"], int),
                prompt_chunk=_typed(value["prompt_chunk"], int),
                device=_typed(value["device"], str),
                targets=Targets(
                    _optional(limits["file_bytes"], int),
                    _optional(limits["peak_rss_bytes"], int),
                    None if limits["decode_tokens_per_s"] is None else _number(limits["decode_tokens_per_s"]),
                    _number(limits["prefill_tokens_per_s"]) if "prefill_tokens_per_s" in limits else None,
                ),
                file_bytes=_typed(predicted["file_bytes"], int),
                memory={part: _typed(predicted["memory"][part], int) for part in PARTS},
                decode_tokens_per_s=_number(predicted["decode_tokens_per_s"]),
                kl=_number(predicted["kl"]),
                bound=_number(value["solver"]["bound"]),
                gap=_number(value["solver"]["gap"]),
                sites=sites,
                kv_cache=_known(value["kv_cache"], KV_CACHES),
                kv_cache_loss=_number(predicted["kv_cache_kl"]),
                prefill_tokens_per_s=_number(predicted["prefill_tokens_per_s"])
                if "prefill_tokens_per_s" in predicted
                else None,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{where} lacks or misstates a field ({type(error).__name__}: {error}).") from None
        except InputError as error:
            raise InputError(f"{where} is not sound: {error}") from None
        if predicted.get("peak_rss_bytes") != plan.peak_rss_bytes or set(predicted["memory"]) != set(PARTS):
            raise InputError(
                f"{where} predicts a peak of {predicted.get('peak_rss_bytes')} bytes, but its parts add up to "
                f"{plan.peak_rss_bytes}; correct it, or plan again."
            )
        return plan

    @classmethod
    def read(cls, path: Path) -> Plan:
        return cls.from_json(read_json(path, "plan"), f"The plan {path}")

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json(), indent=1)

    def check(self, sites: tuple[Site, ...]) -> None:
        """InputError unless the plan names exactly the model's matrices, with the byte counts of their formats."""
        own = {site.name: site for site in sites if not site.tied_to}
        if set(own) != set(self.sites):
            odd = sorted(set(own) ^ set(self.sites))[0]
            raise InputError(f"The plan and the model disagree about the matrix {odd}; plan this model again.")
        for name, choice in self.sites.items():
            if not choice.format.fits(own[name].shape):
                raise InputError(f"The plan asks for a higher rank of {name} than its shape {own[name].shape} has.")
            expected = weight_bytes(own[name].shape, choice.format)
            if choice.bytes != expected:
                raise InputError(
                    f"The plan says {choice.bytes} bytes for {name}, but its format takes {expected}; correct the plan."
                )


def refuse_foreign(out: Path) -> None:
    """InputError if `out` exists and is not a plan: a plan file is replaced, nothing else is."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the plan file to write.")
    if out.exists():
        try:
            Plan.read(out)
        except InputError:
            raise InputError(f"{out} exists and is not a plan of ours; choose another output file.") from None


def _choice(name: str, entry: Any, where: str) -> Choice:
    if not isinstance(entry, dict) or set(entry) - FIELDS - {"bytes", "loss"}:
        raise InputError(f"{where} has a malformed entry for {name}.")
    fmt = SiteFormat.from_json({key: entry[key] for key in FIELDS if key in entry})
    return Choice(fmt, _typed(entry["bytes"], int), _number(entry["loss"]))


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _known(value: Any, names: Iterable[str]) -> str:
    if value not in names:
        raise TypeError(f"{value!r} is none of {', '.join(names)}")
    return str(value)


def _optional(value: Any, kind: type) -> Any:
    return None if value is None else _typed(value, kind)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def _short(value: float) -> float:
    """Six significant digits: enough for every comparison, and short in the manifest."""
    return float(f"{value:.6g}")
