"""`fit`: a model and budgets in, a running, proven bundle out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.run import split
from edge_svd.calibrate.statistics import Statistics
from edge_svd.calibrate.text import CalibrationText
from edge_svd.checkpoint import Checkpoint
from edge_svd.compress import compress, is_of
from edge_svd.devices import DEFAULT
from edge_svd.errors import Failure
from edge_svd.evaluate.text_loss import bundle_loss
from edge_svd.export.bundle import export_bundle, refuse_foreign
from edge_svd.export.documents import context_length
from edge_svd.export.prove import Proof, prove
from edge_svd.files import atomic_write, format_size, replace_folder, writing
from edge_svd.formats import WHOLE_PASS, padded
from edge_svd.models import OpenedModel
from edge_svd.opening import open_decoder
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.planner.targets import SPEED_CONTEXT, Targets
from edge_svd.progress import Tick, step
from edge_svd.refine import Refined, refine
from edge_svd.runtime.bench import bench
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.schema import MEASUREMENTS_NAME, pack_measurements
from edge_svd.steps import Calibration, Planning, fast_precision, proof_windows, run_calibration, run_plan, run_survey
from edge_svd.tune import Tuned, tune

PROOF_KL = {16: 0.005, 32: 0.005, 64: 0.010, 128: 0.018, 256: 0.024, WHOLE_PASS: 0.018}
"""Largest mean KL(checkpoint ‖ bundle), nats per token, by the inputs of a product that share an activation scale: all
our kernels round activations to int8. SmolLM2 all in int8 is at 0.0020, 0.0036, 0.0067 in blocks of 16, 32, 64."""

PROOF_SHARE = 0.02
"""A model that truncation has moved far answers more to noise: this share of the plan's loss is allowed if more."""

PROOF_CACHE = 3.0
"""The checkpoint in torch has an exact KV cache: this many times what rounding the bundle's loses is allowed too."""

MEASURED_WINDOWS = 6
CALIBRATION, PLANNING = Calibration(), Planning()


@dataclass(frozen=True)
class FitResult:
    """What `fit --json` prints."""

    bundle: Path
    plan: Plan
    measured: dict[str, Any]
    proof: Proof
    refined: Refined | None = None
    tuned: Tuned | None = None
    """None without `--tune`, and where an interrupted run had tuned already."""

    @property
    def targets_met(self) -> dict[str, bool | None]:
        """Whether the measurements keep to the targets, by field; None where nothing was asked or can be told here:
        memory off Linux, and the speed of another device than this machine."""
        targets, measured = self.plan.targets, self.measured
        size, peak, speed = targets.file_bytes, targets.peak_rss_bytes, targets.decode_tokens_per_s
        found, prompts = measured["peak_rss_bytes"], targets.prefill_tokens_per_s
        here = self.plan.device == DEFAULT
        return {
            "file_bytes": None if size is None else measured["file_bytes"] <= size,
            "peak_rss_bytes": None if peak is None or found is None else found <= peak,
            "decode_tokens_per_s": None if speed is None or not here else measured["decode_tokens_per_s"] >= speed,
            "prefill_tokens_per_s": None
            if prompts is None or not here
            else measured["prefill_tokens_per_s"] >= prompts,
        }

    def require_memory(self) -> None:
        """Failure if the measured peak is above the target: the bundle is kept, but nobody shall take it as fitting."""
        target, found = self.plan.targets.peak_rss_bytes, self.measured["peak_rss_bytes"]
        if target is not None and found is not None and found > target:
            raise Failure(
                f"{self.bundle} is written, but its measured peak of {format_size(found)} is above the target of "
                f"{format_size(target)}; ask for {format_size(2 * target - found)} to stay below it."
            )

    def to_json(self) -> dict[str, Any]:
        predicted = {
            "file_bytes": self.plan.file_bytes,
            "peak_rss_bytes": self.plan.peak_rss_bytes,
            "kl": self.plan.kl,
            "decode_tokens_per_s": self.plan.decode_tokens_per_s,
            "prefill_tokens_per_s": self.plan.prefill_tokens_per_s,
        }
        return {
            "bundle": str(self.bundle),
            "predicted": predicted,
            "measured": self.measured,
            "targets_met": self.targets_met,
            "proof": self.proof.__dict__,
            "refined": None if self.refined is None else self.refined.to_json(),
            "tuned": None if self.tuned is None else asdict(self.tuned),
            "plan": self.plan.to_json(),
        }


def fit(
    model: str,
    out: Path,
    targets: Targets | int,
    calibration: Calibration = CALIBRATION,
    planning: Planning = PLANNING,
    *,
    force: bool = False,
    threads: int = 2,
) -> FitResult:
    """Calibrate, plan, compress, export, prove and measure; `out` appears only when all of it has succeeded.

    `targets` may be a number: a size in bytes. Partial work lies in `OUT.partial/` and is continued by the next call
    with the same inputs.

    Raises:
        InputError: bad model, options, calibration text or output folder. BudgetError: the targets cannot be met.
        Failure: the exported bundle does not compute what the checkpoint computes, NaN or Inf anywhere, disk full.
    """
    targets = Targets(targets) if isinstance(targets, int) else targets
    planning = replace(planning, resident=targets.resident)
    planning.check()
    refuse_foreign(out, force)
    opened = open_decoder(model, planning.rotate)
    context_length(opened.architecture, planning.context)
    statistics, text = run_calibration(opened, calibration, extras=planning.extras)
    prices = run_survey(opened, statistics, planning)
    plan = run_plan(opened, statistics, prices, planning, targets)
    if not planning.refine:
        return carry_out(opened, statistics, text, plan, out, threads)
    folder = out.with_name(out.name + ".partial") / "refine"

    def planned(table: Survey) -> Plan:
        return run_plan(opened, statistics, table, planning, targets)

    with step("Refining the plan") as tick:
        refined = refine(opened, statistics, prices, plan, planned, folder, tick)
    made = carry_out(opened, statistics, text, refined.plan, out, threads, Checkpoint.open(refined.checkpoint))
    return replace(made, refined=refined)


def carry_out(
    opened: OpenedModel,
    statistics: Statistics,
    text: CalibrationText,
    plan: Plan,
    out: Path,
    threads: int,
    finished: Checkpoint | None = None,
) -> FitResult:
    """Compress, export, prove and measure what a plan says; errors as `fit`, whose second half this is. Matrices that
    `finished` has in the plan's formats are not made again."""
    partial = out.with_name(out.name + ".partial")
    atomic_write(partial / "plan.json", plan.to_bytes())
    checkpoint, exported = partial / "checkpoint", partial / "exported"
    tuned = None
    if not is_of(checkpoint, plan):
        with step("Compressing") as tick:
            compress(opened, plan, statistics, partial / "rounded", force=True, progress=tick, finished=finished)
        if plan.tune_steps:
            with step("Tuning the scales") as tick:
                tuned = tune_scales(opened, partial / "rounded", text, plan, tick)
        replace_folder(partial / "rounded", checkpoint)
    with step("Exporting") as tick:
        export_bundle(
            checkpoint,
            exported,
            context=plan.context,
            force=True,
            progress=lambda _, share: tick(int(100 * share), 100),
        )
    proof = prove_bundle(checkpoint, exported, text, allowed_kl(plan, opened.sites), threads)
    measured = measure(opened, exported, text, proof, threads, plan)
    if measured["file_bytes"] != plan.file_bytes:
        raise Failure(
            f"The bundle has {measured['file_bytes']} bytes where the plan promised {plan.file_bytes}; "
            "please report this."
        )
    with writing(out):
        replace_folder(exported, out)
        shutil.rmtree(partial, ignore_errors=True)
    return FitResult(out, plan, measured, proof, tuned=tuned)


def tune_scales(opened: OpenedModel, checkpoint: Path, text: CalibrationText, plan: Plan, tick: Tick) -> Tuned:
    """Distil into the scales of a checkpoint, on the windows that made the metrics."""
    own, held = split(len(text.ids))
    windows = torch.from_numpy(text.ids)
    return tune(
        opened,
        checkpoint,
        windows[own],
        windows[held],
        steps=plan.tune_steps,
        seed=plan.seed,
        precision=fast_precision(),
        progress=tick,
    )


def allowed_kl(plan: Plan, sites: Sequence[Site]) -> float:
    """What rounding of activations, by product, on average, and of the KV cache may put between the checkpoint and the
    bundle of a plan."""
    formats = plan.formats
    products = [(site, formats[site.tied_to or site.name]) for site in sites if site.type != "embedding"]
    blocks = [fmt.inputs_a_block(padded(site.shape[1])) for site, fmt in products]
    allowed = max(sum(PROOF_KL[block] for block in blocks) / len(blocks), PROOF_SHARE * plan.kl)
    return allowed + PROOF_CACHE * plan.kv_cache_loss


def prove_bundle(checkpoint: Path, bundle: Path, text: CalibrationText, limit: float, threads: int) -> Proof:
    """Compare the exported graph with the checkpoint in torch on real text; Failure if they disagree by more than
    `limit`, nats per token."""
    with step("Proving the bundle against the checkpoint"):
        windows = proof_windows(text)
        proof = prove(checkpoint, bundle, windows, prompt=len(windows[0]) // 2, threads=threads)
    if proof.kl_mean > limit:
        raise Failure(
            f"The exported bundle does not compute what the checkpoint computes: KL {proof.kl_mean:.4f} nats per token "
            f"where {limit:.4f} is allowed, {proof.top1_agreement:.1%} equal first choices; the bundle was not written."
        )
    return proof


def measure(
    opened: OpenedModel, bundle: Path, text: CalibrationText, proof: Proof, threads: int, plan: Plan
) -> dict[str, Any]:
    """Size, KL to the dense model on windows that made no metric, speed and memory; written into the bundle."""
    _, held = split(len(text.ids))
    rows = text.ids[held[:MEASURED_WINDOWS]]
    opened_bundle = open_bundle(bundle)
    with step("Measuring KL to the dense model") as tick:
        loss = bundle_loss(
            opened_bundle,
            np.concatenate(rows).tolist(),
            window=rows.shape[1],
            windows=len(rows),
            reference=opened.model,
            threads=threads,
            progress=lambda done: tick(done, len(rows)),
        )
    with step("Measuring speed and memory"):
        prompt, new = min(SPEED_CONTEXT, plan.context // 2), min(64, plan.context // 2)
        chunk = plan.prompt_chunk
        speed = bench(bundle, prompt_tokens=prompt, new_tokens=new, threads=threads, capacity=plan.context, chunk=chunk)
    measured = {
        "file_bytes": speed["file_bytes"],
        "peak_rss_bytes": speed["peak_rss_bytes"],
        "kl": loss.kl,
        "decode_tokens_per_s": speed["decode_tokens_per_s"],
        "prefill_tokens_per_s": speed["prefill_tokens_per_s"],
    }
    record = {"measured": measured, "bench": speed, "proof": proof.__dict__, "kl_tokens": loss.score.tokens}
    atomic_write(bundle / MEASUREMENTS_NAME, pack_measurements(record))
    return measured
