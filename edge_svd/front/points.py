"""The points of a front: a plan each, carried out and measured where that is asked for, and kept once finished."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.calibrate.statistics import Statistics
from edge_svd.calibrate.text import CalibrationText
from edge_svd.errors import BudgetError, InputError
from edge_svd.evaluate.text_loss import bundle_loss, model_loss
from edge_svd.files import atomic_write, canonical_json, read_json
from edge_svd.fit import carry_out
from edge_svd.front.targets import Target
from edge_svd.models import OpenedModel
from edge_svd.planner.plan import Plan
from edge_svd.progress import step
from edge_svd.report.machine import describe
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import load_tokenizer

VERSION = 1
FIGURES = ("file_bytes", "peak_rss_bytes", "kl", "decode_tokens_per_s")
"""What is predicted and what is measured, under the names that `fit --json` uses; None where nothing is known."""


@dataclass(frozen=True)
class Evaluation:
    """A text whose perplexity every point is measured on: `windows` non-overlapping windows of `window` tokens."""

    path: Path
    content: str
    window: int
    windows: int

    @classmethod
    def read(cls, path: Path, window: int, windows: int) -> Evaluation:
        """InputError if the file is missing, empty or not UTF-8 text."""
        return cls(path, read_text(path), window, windows)

    def to_json(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.content.encode()).hexdigest()
        return {"file": self.path.name, "sha256": digest, "window": self.window, "windows": self.windows}


@dataclass(frozen=True)
class Point:
    """One target. Either `plan` stands and `measured` may (FIGURES, and "perplexity" where there is a text), or
    `refusal` says why the target cannot be reached."""

    target: Target
    plan: Plan | None = None
    refusal: BudgetError | None = None
    measured: Mapping[str, Any] | None = None
    proof: Mapping[str, Any] | None = None
    bundle: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A row of front.json; `bundle` is relative to its folder."""
        row: dict[str, Any] = {
            "target": {"kind": self.target.kind, "value": self.target.value},
            "label": self.target.label,
            "reachable": self.plan is not None,
        }
        if self.refusal is not None:
            refusal = self.refusal
            return row | {
                "refusal": {"message": str(refusal), "smallest": refusal.smallest, "dominant": refusal.dominant}
            }
        assert self.plan is not None
        plan = self.plan.to_json()
        return row | {
            "predicted": {name: plan["predicted"].get(name) for name in FIGURES},
            "measured": None if self.measured is None else dict(self.measured),
            "proof": None if self.proof is None else dict(self.proof),
            "bundle": self.bundle,
            "plan": plan,
        }


class Workshop:
    """Carries out plans of one model and keeps every finished measurement in FOLDER/points.

    A measurement is taken again only if something that it depends on differs: the plan (and with it model, statistics
    and target), the evaluation text, the calibration text that KL is measured on, threads, processor, versions.
    """

    def __init__(
        self,
        folder: Path,
        opened: OpenedModel,
        statistics: Statistics,
        text: CalibrationText,
        evaluation: Evaluation | None,
        threads: int,
        again: bool = False,
    ) -> None:
        """`again`: take no notice of what earlier runs finished."""
        self.again = again
        self.folder, self.opened, self.statistics, self.text = folder, opened, statistics, text
        self.evaluation, self.threads = evaluation, threads
        machine = describe()
        self.surroundings = {
            "version": VERSION,
            "processor": machine["processor"],
            "versions": machine["versions"],
            "evaluation": evaluation.to_json() if evaluation is not None else None,
            "threads": threads,
        }

    def measured(self, target: Target, plan: Plan) -> Point:
        """The point of a plan: from an earlier run, or compressed, exported, proven and measured now.

        Errors as `fit`, and InputError where the evaluation text is too short for its windows.
        """
        name = f"bundles/{target.label}"
        inputs = {"plan": hashlib.sha256(plan.to_bytes()).hexdigest(), "calibration": self.text.source_digest}
        file = self._file(inputs)
        kept = self._kept(file, "measured", "proof")
        if kept is None:
            done = carry_out(self.opened, self.statistics, self.text, plan, self.folder / name, self.threads)
            kept = {"measured": dict(done.measured), "proof": dict(done.proof.__dict__)}
            if self.evaluation is not None:
                kept["measured"]["perplexity"] = self._perplexity(self.folder / name)
            atomic_write(file, canonical_json(kept, indent=1))
        return Point(
            target,
            plan,
            measured=kept["measured"],
            proof=kept["proof"],
            bundle=name if (self.folder / name).is_dir() else None,
        )

    def dense(self) -> dict[str, Any] | None:
        """Perplexity of the model itself on the evaluation text; None without one."""
        if self.evaluation is None:
            return None
        file = self._file({"dense": self.opened.digest, "tokenizer": self.opened.tokenizer_digest})
        kept = self._kept(file, "dense")
        if kept is None:
            chosen = self.evaluation
            ids = self.opened.tokenizer(chosen.content, add_special_tokens=False, verbose=False).input_ids
            with step("Perplexity of the dense model") as tick:
                loss = model_loss(
                    self.opened.model,
                    ids,
                    window=chosen.window,
                    windows=chosen.windows,
                    progress=lambda done: tick(done, chosen.windows),
                )
            kept = {"dense": {"perplexity": loss.score.perplexity}}
            atomic_write(file, canonical_json(kept))
        return dict(kept["dense"])

    def _perplexity(self, bundle: Path) -> float:
        assert self.evaluation is not None
        chosen, opened = self.evaluation, open_bundle(bundle)
        ids = load_tokenizer(opened).encode(chosen.content)
        with step("Perplexity of the bundle") as tick:
            loss = bundle_loss(
                opened,
                ids,
                window=chosen.window,
                windows=chosen.windows,
                threads=self.threads,
                progress=lambda done: tick(done, chosen.windows),
            )
        return loss.score.perplexity

    def _file(self, inputs: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(canonical_json(self.surroundings | dict(inputs))).hexdigest()
        return self.folder / "points" / f"{key[:24]}.json"

    def _kept(self, file: Path, *parts: str) -> dict[str, Any] | None:
        """What an earlier run finished; None where it did not, or where the file no longer holds these objects."""
        try:
            found = None if self.again else read_json(file, "finished point")
        except InputError:
            return None
        whole = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in parts)
        return found if whole else None
