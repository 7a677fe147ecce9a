"""`fit`: a model and a byte budget in, a running, proven bundle out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.allocate import allocation
from edge_svd.calibrate.run import split
from edge_svd.calibrate.statistics import Statistics
from edge_svd.calibrate.text import CalibrationText
from edge_svd.checkpoint import MANIFEST, Checkpoint
from edge_svd.compress import compress
from edge_svd.errors import Failure
from edge_svd.evaluate.text_loss import bundle_loss
from edge_svd.export.bundle import export_bundle, refuse_foreign
from edge_svd.export.documents import context_length
from edge_svd.export.prove import Proof, prove
from edge_svd.files import atomic_write, canonical_json, replace_folder, writing
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.plan import Plan
from edge_svd.progress import step
from edge_svd.runtime.bench import bench
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.schema import MEASUREMENTS_NAME, pack_measurements
from edge_svd.steps import Calibration, Planning, proof_windows, run_calibration, run_plan, run_survey

PROOF_KL = 0.005
"""Largest mean KL(checkpoint ‖ bundle), nats per token; all our kernels round activations to int8."""

PROOF_SHARE = 0.02
"""A model that truncation has moved far answers more to noise: this share of the plan's loss is allowed if more."""

MEASURED_WINDOWS = 8
CALIBRATION, PLANNING = Calibration(), Planning()


@dataclass(frozen=True)
class FitResult:
    """What `fit --json` prints."""

    bundle: Path
    plan: Plan
    measured: dict[str, Any]
    proof: Proof

    def to_json(self) -> dict[str, Any]:
        predicted = {
            "file_bytes": self.plan.file_bytes,
            "peak_rss_bytes": None,
            "kl": self.plan.kl,
            "decode_tokens_per_s": None,
        }
        return {
            "bundle": str(self.bundle),
            "predicted": predicted,
            "measured": self.measured,
            "proof": self.proof.__dict__,
            "plan": self.plan.to_json(),
        }


def fit(
    model: str,
    out: Path,
    target_bytes: int,
    calibration: Calibration = CALIBRATION,
    planning: Planning = PLANNING,
    *,
    force: bool = False,
    threads: int = 2,
) -> FitResult:
    """Calibrate, plan, compress, export, prove and measure; `out` appears only when all of it has succeeded.

    Partial work lies in `OUT.partial/` and is continued by the next call with the same inputs.

    Raises:
        InputError: bad model, options, calibration text or output folder. BudgetError: the size cannot be reached.
        Failure: the exported bundle does not compute what the checkpoint computes, NaN or Inf anywhere, disk full.
    """
    planning.check()
    refuse_foreign(out, force)
    opened = open_model(model)
    context_length(opened.architecture, planning.context)
    statistics, text = run_calibration(opened, calibration, gradients=allocation(planning.allocation).needs_gradient)
    prices = run_survey(opened, statistics, planning)
    plan = run_plan(opened, statistics, prices, planning, target_bytes)
    return carry_out(opened, statistics, text, plan, out, threads)


def carry_out(
    opened: OpenedModel, statistics: Statistics, text: CalibrationText, plan: Plan, out: Path, threads: int
) -> FitResult:
    """Compress, export, prove and measure what a plan says; errors as `fit`, whose second half this is."""
    partial = out.with_name(out.name + ".partial")
    atomic_write(partial / "plan.json", plan.to_bytes())
    checkpoint, exported = partial / "checkpoint", partial / "exported"
    with step("Compressing") as tick:
        if not checkpoint_is_current(checkpoint, plan):
            compress(opened, plan, statistics, checkpoint, force=True, progress=tick)
    with step("Exporting") as tick:
        export_bundle(
            checkpoint,
            exported,
            context=plan.context,
            force=True,
            progress=lambda _, share: tick(int(100 * share), 100),
        )
    proof = prove_bundle(checkpoint, exported, text, plan.kl, threads)
    measured = measure(opened, exported, text, proof, threads)
    if measured["file_bytes"] != plan.file_bytes:
        raise Failure(
            f"The bundle has {measured['file_bytes']} bytes where the plan promised {plan.file_bytes}; "
            "please report this."
        )
    with writing(out):
        replace_folder(exported, out)
        shutil.rmtree(partial, ignore_errors=True)
    return FitResult(out, plan, measured, proof)


def checkpoint_is_current(path: Path, plan: Plan) -> bool:
    """Whether an earlier, interrupted run has already finished the checkpoint of this very plan."""
    if not (path / MANIFEST).exists():
        return False
    return canonical_json(dict(Checkpoint.open(path).plan)) == canonical_json(plan.to_json())


def prove_bundle(checkpoint: Path, bundle: Path, text: CalibrationText, predicted: float, threads: int) -> Proof:
    """Compare the exported graph with the checkpoint in torch on real text; Failure if they disagree."""
    with step("Proving the bundle against the checkpoint"):
        windows = proof_windows(text)
        proof = prove(checkpoint, bundle, windows, prompt=len(windows[0]) // 2, threads=threads)
    limit = max(PROOF_KL, PROOF_SHARE * predicted)
    if proof.kl_mean > limit:
        raise Failure(
            f"The exported bundle does not compute what the checkpoint computes: KL {proof.kl_mean:.4f} nats per token "
            f"where {limit:.4f} is allowed, {proof.top1_agreement:.1%} equal first choices; the bundle was not written."
        )
    return proof


def measure(opened: OpenedModel, bundle: Path, text: CalibrationText, proof: Proof, threads: int) -> dict[str, Any]:
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
        context = opened_bundle.manifest.model.max_context
        prompt, new = min(512, context // 2), min(64, context // 2)
        speed = bench(bundle, prompt_tokens=prompt, new_tokens=new, threads=threads)
    measured = {
        "file_bytes": speed["file_bytes"],
        "peak_rss_bytes": speed["peak_rss_bytes"],
        "kl": loss.kl,
        "decode_tokens_per_s": speed["decode_tokens_per_s"],
    }
    record = {"measured": measured, "bench": speed, "proof": proof.__dict__, "kl_tokens": loss.score.tokens}
    atomic_write(bundle / MEASUREMENTS_NAME, pack_measurements(record))
    return measured
