"""`fit` for a sentence encoder: a model folder, text and a size in, a running, proven bundle out."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.allocate import allocation
from edge_svd.calibrate.run import split
from edge_svd.calibrate.text import CalibrationText
from edge_svd.compress import compressed
from edge_svd.decompose import decompose
from edge_svd.encoders.opened import OpenedEncoder, open_encoder
from edge_svd.encoders.pooling import PADDING
from edge_svd.errors import Failure, InputError
from edge_svd.evaluate.cosine import CosineLoss, bundle_cosine
from edge_svd.export.bundle import export_bundle, refuse_foreign
from edge_svd.files import atomic_write, replace_folder, writing
from edge_svd.loading import load
from edge_svd.planner.plan import Plan
from edge_svd.planner.targets import Targets
from edge_svd.progress import step
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.embed import Embedder
from edge_svd.runtime.schema import MEASUREMENTS_NAME, pack_measurements
from edge_svd.steps import AUTO, EXACT, Calibration, Planning, run_calibration, run_plan, run_survey

PROOF_LOSS = 0.005
"""Largest mean 1 - cosine between checkpoint and bundle: our kernels round activations to int8."""

PROOF_SHARE = 0.25
"""A model that compression has moved far answers more to noise: this share of the plan's loss is allowed if more."""

PROVED, MEASURED = 64, 256
"""Passages."""


@dataclass(frozen=True)
class EncoderFit:
    """What `fit --json` prints for an encoder; `proof` compares the bundle with the checkpoint."""

    bundle: Path
    plan: Plan
    measured: dict[str, Any]
    proof: CosineLoss

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "predicted": {"file_bytes": self.plan.file_bytes, "loss": self.plan.kl, "cosine": 1 - self.plan.kl},
            "measured": self.measured,
            "proof": self.proof.to_json(),
            "plan": self.plan.to_json(),
        }


def fit_encoder(
    model: str, out: Path, targets: Targets, calibration: Calibration, planning: Planning, *, force: bool, threads: int
) -> EncoderFit:
    """Calibrate, plan, compress, export, prove and measure; `out` appears only when all of it has succeeded.

    Raises:
        InputError: bad model, options, calibration text or output folder. BudgetError: the size cannot be met.
        Failure: the exported bundle does not compute what the checkpoint computes, NaN or Inf anywhere, disk full.
    """
    planning.check()
    _check_encoder(targets, planning)
    refuse_foreign(out, force)
    opened = open_encoder(model)
    statistics, text = run_calibration(opened, calibration)
    prices = run_survey(opened, statistics, planning)
    plan = run_plan(opened, statistics, prices, planning, targets)
    partial = out.with_name(out.name + ".partial")
    atomic_write(partial / "plan.json", plan.to_bytes())
    with step("Compressing") as tick:
        checkpoint = compressed(opened, plan, statistics, partial / "checkpoint", progress=tick)
    exported = partial / "exported"
    with step("Exporting") as tick:
        export_bundle(checkpoint.path, exported, force=True, progress=lambda _, share: tick(int(100 * share), 100))
    with step("Proving the bundle against the checkpoint"):
        proof = bundle_cosine(exported, _held_out(text)[:PROVED], load(checkpoint.path), threads=threads)
    allowed = max(PROOF_LOSS, PROOF_SHARE * plan.kl)
    if proof.loss > allowed:
        raise Failure(
            f"The exported bundle does not compute what the checkpoint computes: 1 - cosine is {proof.loss:.5f} where "
            f"{allowed:.5f} is allowed; the bundle was not written."
        )
    measured = _measured(opened, exported, text, proof, threads)
    if measured["file_bytes"] != plan.file_bytes:
        raise Failure(
            f"The bundle has {measured['file_bytes']} bytes where the plan promised {plan.file_bytes}; "
            "please report this."
        )
    with writing(out):
        replace_folder(exported, out)
        shutil.rmtree(partial, ignore_errors=True)
    return EncoderFit(out, plan, measured, proof)


def _check_encoder(targets: Targets, planning: Planning) -> None:
    """InputError on what is there for decoders only."""
    if targets.resident:
        raise InputError("--ram and --min-decode-tps are for models that write text; give an encoder a --size alone.")
    if planning.refine or planning.rotate or planning.tune_steps:
        raise InputError("--refine, --rotate and --tune are for models that write text; leave them out for an encoder.")
    if planning.kv_cache not in (AUTO, EXACT):
        raise InputError("An encoder has no KV cache; leave --kv-cache out.")
    if allocation(planning.allocation).needs:
        raise InputError(f"The allocation {planning.allocation} is for models that write text; choose second-order.")
    if set(decompose(planning.method).needs) - {"moment"}:
        raise InputError(f"The method {planning.method} is for models that write text; choose io-svd.")


def _held_out(text: CalibrationText) -> list[list[int]]:
    """Passages that made no metric."""
    _, held = split(len(text.ids))
    return [row[row != PADDING].tolist() for row in text.ids[held]]


def _measured(
    opened: OpenedEncoder, bundle: Path, text: CalibrationText, proof: CosineLoss, threads: int
) -> dict[str, Any]:
    """Size, cosine to the dense model on held-out passages, and passages a second; written into the bundle."""
    passages = _held_out(text)[:MEASURED]
    with step("Measuring the cosine to the dense model"):
        found = bundle_cosine(bundle, passages, opened.model, threads=threads)
        embedder = Embedder(bundle, threads=threads)
        embedder.embed_ids(passages[:4])
        start = time.perf_counter()
        embedder.embed_ids(passages)
        speed = len(passages) / (time.perf_counter() - start)
    measured = {
        "file_bytes": open_bundle(bundle).file_bytes,
        "cosine": found.cosine,
        "loss": found.loss,
        "passages_per_s": speed,
    }
    record = {"measured": measured, "proof": proof.to_json(), "held_out": found.to_json()}
    atomic_write(bundle / MEASUREMENTS_NAME, pack_measurements(record))
    return measured
