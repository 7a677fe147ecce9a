"""The steps of a fit, each usable alone: calibrate, plan, compress, export. The command line calls these."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime
import torch

from edge_svd.allocate import allocation
from edge_svd.architectures import sites_of
from edge_svd.bfloat16 import bfloat16_is_faster
from edge_svd.calibrate.collect import Estimator
from edge_svd.calibrate.cotangents import ESTIMATORS
from edge_svd.calibrate.passages import PassageText, passages_from
from edge_svd.calibrate.run import calibrate, statistics_key
from edge_svd.calibrate.run_passages import calibrate_passages, passage_key
from edge_svd.calibrate.sources import parse_source
from edge_svd.calibrate.statistics import EXTRAS, Statistics, cache_key, extras_of
from edge_svd.calibrate.text import CalibrationText, windows_from
from edge_svd.compute_device import compute_device
from edge_svd.decompose import decompose
from edge_svd.devices import DEFAULT, load_profile
from edge_svd.encoders.opened import OpenedEncoder, encoder_family
from edge_svd.errors import BudgetError, InputError
from edge_svd.export.documents import context_length
from edge_svd.export.size import exact_sizes
from edge_svd.files import cache_folder
from edge_svd.formats import KV_CACHES
from edge_svd.models import OpenedModel
from edge_svd.opening import Opened
from edge_svd.planner.draft import SizeOf, sized
from edge_svd.planner.kv_cache import RoundedCache, rounded_cache
from edge_svd.planner.make import make_plan
from edge_svd.planner.memory import Load
from edge_svd.planner.plan import Plan
from edge_svd.planner.products import products
from edge_svd.planner.survey import Survey, candidate_kinds, survey
from edge_svd.planner.targets import Setting, Targets
from edge_svd.progress import step
from edge_svd.runtime.kernel_support import kernel_works, whole_pass_works
from edge_svd.runtime.memory import release_free_memory
from edge_svd.runtime.schema import TOKENIZER_NAME
from edge_svd.runtime.session import DEFAULT_CHUNK

AUTO, EXACT = "auto", "float32"
"""Kinds of KV cache: left to the planner, and the one that loses nothing."""

WORTHWHILE = 0.1
"""Share of a plan's loss that rounding the KV cache may take without a plan with an exact one being made as well."""

ENCODER_LOSS = "1 - cosine"
"""What stands for the KL in plans of encoders: of the embeddings to the dense model's, mean over passages."""

MOST_PASSES = 256
"""Backward passes a window that anyone would wait for."""

SECONDS_A_STEP = 2.0
"""What a step counts as when minutes become steps: SmolLM2 with windows of 512 on two cores."""


def kv_cache_kind(name: str) -> str:
    """The name, if it is one of a kind of KV cache or `AUTO`; InputError that lists them otherwise."""
    known = (AUTO, *KV_CACHES)
    if name not in known:
        raise InputError(f"Unknown kind of KV cache {name!r}; known: {', '.join(known)}.")
    return name


def steps_of(minutes: float) -> int:
    """Steps that `--tune MINUTES` stands for; InputError unless it is a positive, finite number."""
    if not (math.isfinite(minutes) and minutes > 0):
        raise InputError(f"--tune needs a positive number of minutes, not {minutes}.")
    return max(1, round(minutes * 60 / SECONDS_A_STEP))


def fast_precision() -> str:
    """bfloat16 where it is multiplied faster, by a CUDA card always: calibration takes half the time then."""
    return "bfloat16" if compute_device().type == "cuda" or bfloat16_is_faster() else "float32"


def estimator_of(text: str) -> Estimator:
    """`sampled:N` (N draws a position) or `top-k:K` (the K most probable tokens); InputError on anything else."""
    kind, _, number = text.partition(":")
    if kind in ESTIMATORS and number.isascii() and number.isdigit() and 0 < int(number) <= MOST_PASSES:
        made, passes = Estimator(kind=kind, precision=fast_precision()), int(number)
        return replace(made, samples=passes) if kind == "sampled" else replace(made, k=passes)
    raise InputError(f"--curvature {text!r} must be sampled:N or top-k:K, with N or K from 1 to {MOST_PASSES}.")


@dataclass(frozen=True)
class Calibration:
    """Where calibration text comes from and how much of it is used."""

    sources: tuple[str, ...] = ("self",)
    windows: int = 128
    window: int = 512
    seed: int = 0
    estimator: Estimator = field(default_factory=lambda: Estimator(precision=fast_precision()))


ENCODER_CALIBRATION = Calibration(windows=1024, window=128)
"""What is usual for an encoder, in passages and tokens; its source has to be named."""


def usual_calibration(model: str) -> Calibration:
    """The options of calibration where none are given, for a MODEL of the command line."""
    return ENCODER_CALIBRATION if encoder_family(model) else Calibration()


@dataclass(frozen=True)
class Planning:
    """What the planner may choose from, and how it prices; `resident`: for targets of memory or speed too, which
    decides the candidates where none are named; `refine`: whether `fit` measures the plan and makes it again; `rotate`:
    whether `fit` rotates the model first (`edge_svd.rotation`);
    `kv_cache`: a kind of KV cache, or `AUTO`: int8 where memory is limited and it is worth what it loses."""

    method: str = "io-svd"
    allocation: str = "second-order"
    candidates: str | None = None
    context: int | None = None
    seed: int = 0
    prompt_chunk: int = DEFAULT_CHUNK
    device: str = DEFAULT
    tune_steps: int = 0
    resident: bool = False
    refine: bool = False
    kv_cache: str = AUTO
    rotate: bool = False

    @property
    def families(self) -> tuple[str, ...]:
        """The candidate families to choose from; InputError on an unknown one."""
        return candidate_kinds(self.candidates, self.resident)

    @property
    def extras(self) -> set[str]:
        """The statistics beyond the moments that method and allocation look at."""
        return extras_of((*decompose(self.method).needs, *allocation(self.allocation).needs))

    def check(self) -> None:
        """InputError on an unknown method, allocation, candidate kind or device, before any work is done."""
        if self.prompt_chunk < 1:
            raise InputError(f"The prompt chunk must be at least 1 token, not {self.prompt_chunk}.")
        kv_cache_kind(self.kv_cache)
        load_profile(self.device)
        decompose(self.method)
        allocation(self.allocation)
        _ = self.families


def calibration_text(opened: Opened, options: Calibration) -> CalibrationText:
    """The calibration windows, of an encoder passages; text that the model writes itself is kept in the cache."""
    sources = [parse_source(text) for text in options.sources]
    if isinstance(opened, OpenedEncoder):
        with step("Calibration text"):
            return passages_from(sources, opened, longest=options.window, count=options.windows, seed=options.seed)
    with step("Calibration text") as tick:
        text = windows_from(
            sources,
            opened,
            window=options.window,
            count=options.windows,
            seed=options.seed,
            progress=tick,
            cache=cache_folder() / "text",
        )
    release_free_memory()
    return text


def run_calibration(
    opened: Opened, options: Calibration, out: Path | None = None, *, extras: Collection[str] = EXTRAS
) -> tuple[Statistics, CalibrationText]:
    """Statistics for the model: from `out` or the cache where they exist, otherwise collected now.

    `extras`: the statistics beyond the moments that are taken too, `Planning.extras` those that a plan looks at.

    Errors as `calibrate.text.windows_from` and `calibrate.run.calibrate`.
    """
    text = calibration_text(opened, options)
    shape = (int(text.ids.shape[0]), int(text.ids.shape[1]))
    if isinstance(opened, OpenedEncoder):
        assert isinstance(text, PassageText)
        return _calibrate_encoder(opened, text, options, out), text
    key = statistics_key(
        opened.digest, opened.tokenizer_digest, text.source_digest, shape, options.seed, options.estimator
    )
    folder = out if out is not None else cache_folder() / "statistics" / cache_key(key)
    with step("Calibration") as tick:
        windows = torch.from_numpy(text.ids)
        return calibrate(
            opened.model, opened.architecture, windows, key, folder, options.estimator, tick, extras=extras
        ), text


def healing_text(opened: Opened, options: Calibration) -> Callable[[], torch.Tensor]:
    """Gives windows of the calibration's text, int64 [count, window], when it is called; errors as `windows_from`."""
    return lambda: torch.from_numpy(calibration_text(opened, options).ids)


def _calibrate_encoder(opened: OpenedEncoder, text: PassageText, options: Calibration, out: Path | None) -> Statistics:
    """Statistics of an encoder: first-order scores are not made for these."""
    shape = (int(text.ids.shape[0]), int(text.ids.shape[1]))
    key = passage_key(opened.digest, opened.tokenizer_digest, text.source_digest, shape, options.seed)
    folder = out if out is not None else cache_folder() / "statistics" / cache_key(key)
    passages = torch.from_numpy(text.ids)
    with step("Calibration") as tick:
        return calibrate_passages(opened.model, opened.architecture, passages, text.frequency, key, folder, tick)


def run_survey(opened: Opened, statistics: Statistics, options: Planning) -> Survey:
    """Prices of all candidates, kept beside the statistics."""
    options.check()
    context_length(opened.architecture, options.context)
    statistics.require_model(opened.digest, opened.tokenizer_digest)
    with step("Pricing candidates") as tick:
        return survey(
            opened.model,
            opened.architecture,
            statistics,
            method=options.method,
            allocation_name=options.allocation,
            kinds=options.families,
            cache=statistics.path,
            progress=tick,
        )


def run_plan(opened: Opened, statistics: Statistics, prices: Survey, options: Planning, targets: Targets | int) -> Plan:
    """The best plan that meets the targets (a number is a size in bytes); BudgetError if there is none."""
    if not isinstance(targets, Targets):
        targets = Targets(targets)
    source = {"model": opened.name, "digest": opened.digest, "statistics": cache_key(statistics.key)}
    if statistics.of_passages:
        source["loss"] = ENCODER_LOSS

    def planned(kv_cache: str) -> Plan:
        setting = setting_of(opened, replace(options, kv_cache=kv_cache))
        if kv_cache != EXACT and isinstance(opened, OpenedModel):
            setting = replace(setting, cache_loss=_cache_of(opened, statistics).loss)
        return make_plan(
            prices,
            source,
            targets=targets,
            setting=setting,
            seed=options.seed,
            size_of=_size_of(opened, setting.load.context),
            tune_steps=options.tune_steps,
        )

    if options.kv_cache != AUTO:
        plan = planned(options.kv_cache)
    elif targets.peak_rss_bytes is None:
        plan = planned(EXACT)
    else:
        plan = planned("int8")
        # An exact cache leaves less for the weights, so all it can win is what rounding the cache loses.
        if plan.kv_cache_loss > WORTHWHILE * plan.kl:
            with suppress(BudgetError):
                plan = min(plan, planned(EXACT), key=lambda made: made.kl)
    check_kernels(opened, plan)
    return plan


def _cache_of(opened: OpenedModel, statistics: Statistics) -> RoundedCache:
    with step("Rounding the KV cache"):
        return rounded_cache(opened, statistics)


def setting_of(opened: Opened, options: Planning) -> Setting:
    """What memory and speed of a plan of this model are predicted for, its KV cache exact where `options` leave that
    open; InputError on an unknown device or context."""
    context = context_length(opened.architecture, options.context)
    tokenizer = len(opened.companions.get(TOKENIZER_NAME, b""))
    kind = EXACT if options.kv_cache == AUTO else options.kv_cache
    load = Load(context, min(options.prompt_chunk, context), tokenizer, kind)
    return Setting(opened.architecture, load_profile(options.device), load)


def check_plan(opened: Opened, plan: Plan) -> None:
    """InputError unless a plan, which a person may have edited, is of this model and adds up to the byte."""
    plan.check(opened.sites)
    check_kernels(opened, plan)
    if plan.source.get("digest") != opened.digest:
        raise InputError(f"The plan was made for another model than {opened.name}; plan this model again.")
    if plan.tune_steps:
        raise InputError(
            f"The plan asks for {plan.tune_steps} steps of tuning, which need the calibration text: `fit --tune` does "
            "that; set tune_steps to 0 to compress without."
        )
    exact = sized(plan, _size_of(opened, context_length(opened.architecture, plan.context))).file_bytes
    if exact != plan.file_bytes:
        raise InputError(
            f"The plan promises a bundle of {plan.file_bytes} bytes, but what it chooses makes {exact}; "
            "write that number into predicted.file_bytes, or plan again."
        )


def check_kernels(opened: Opened, plan: Plan) -> None:
    """InputError if the plan needs a kernel that the installed onnxruntime lacks."""
    for site in opened.sites:
        for product in () if site.tied_to else products(site.shape, plan.formats[site.name]):
            if product.whole and not whole_pass_works():
                raise InputError(
                    f"The plan keeps {site.name} in int8 rows whose inputs share one scale a pass, which onnxruntime "
                    f"{onnxruntime.__version__} computes wrongly on this processor; plan again here, or use a machine "
                    "with VNNI."
                )
            if not product.whole and not kernel_works(product.bits, product.block):
                raise InputError(
                    f"The plan keeps {site.name} in {product.bits} bits in blocks of {product.block}, for which the "
                    f"installed onnxruntime {onnxruntime.__version__} has no working kernel; upgrade onnxruntime, or "
                    "leave that kind out of --candidates."
                )


def _size_of(opened: Opened, context: int) -> SizeOf:
    """Exact bytes of every file of the bundle that follows from a plan."""
    architecture = opened.architecture
    origin = {"model": opened.name, "digest": opened.digest}
    biases = frozenset(site.name for site in sites_of(architecture) if site.bias)

    def size_of(plan: Plan) -> dict[str, int]:
        return exact_sizes(
            architecture, plan.formats, opened.companions, origin, plan.to_json(), biases=biases, context=context
        )

    return size_of


def proof_windows(text: CalibrationText, windows: int = 64, length: int = 64) -> Sequence[Sequence[int]]:
    """Prompts spread over the calibration text, each with as many tokens to continue it, for comparing a bundle with
    its checkpoint."""
    count, width = text.ids.shape
    length = min(length, width)
    per = -(-windows // count)
    starts = [int(i * (width - length) / max(per - 1, 1)) for i in range(per)]
    found = [
        text.ids[int(i * count / windows) if per == 1 else i, s : s + length].tolist()
        for s in starts
        for i in range(min(count, windows))
    ]
    return found[:windows]
