"""How good and how fast a model of every size is: plan, compress, export, evaluate and time, from one calibration.

    python benchmarks/sizes.py --data DIR --model MODEL [--out FOLDER] [--sizes 145,105,88,75,62,50] [--tune MINUTES]

DIR holds wikitext2_raw, code_python and cmrc2018_zh, as .txt or .txt.gz: equal windows of the first two's train parts
and of the third's valid part calibrate, all three test parts evaluate (64 windows of 512 of the first, 32 of the
others). What is finished lies in OUT and is not done again but for `--retime`. `benchmarks/peers.py --bundles` takes
the bundles (OUT/b88 and so on) and measures them beside the rivals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from figures import speed, text_file

from edge_svd.compress import compress
from edge_svd.evaluate.targets import evaluate_target
from edge_svd.export import export_bundle
from edge_svd.fit import tune_scales
from edge_svd.models import open_model
from edge_svd.progress import step
from edge_svd.report.machine import describe, today
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey, steps_of

TEXTS = {"wikitext2_raw": 64, "code_python": 32, "cmrc2018_zh": 32}
CALIBRATION = ("wikitext2_raw.train", "code_python.train", "cmrc2018_zh.valid")


def losses(target: str, data: Path) -> dict[str, float]:
    """Perplexity on every text."""
    return {
        text: evaluate_target(target, text_file(data, f"{text}.test"), window=512, windows=count).score.perplexity
        for text, count in TEXTS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("out/sizes"))
    parser.add_argument("--sizes", default="145,105,88,75,62,50", help="megabytes")
    parser.add_argument("--tune", type=float, help="minutes of distillation after rounding, as `fit --tune`")
    parser.add_argument("--retime", action="store_true", help="take speed and memory of finished bundles again")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    opened: Any = None

    def kept(name: str, make: Any) -> dict[str, Any]:
        file = options.out / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
        return dict(json.loads(file.read_text()))

    def named(size: str) -> str:
        return f"{size}-tuned-{options.tune:g}" if options.tune else size

    def row(size: str) -> dict[str, Any]:
        nonlocal opened
        bundle, folder = options.out / f"b{named(size)}", options.out / f"ck{named(size)}"
        if not (bundle / "edge_svd.json").exists():
            opened = opened or open_model(options.model)
            sources = tuple(str(text_file(options.data, name)) for name in CALIBRATION)
            statistics, text = run_calibration(opened, Calibration(sources), extras=())
            planning = Planning(tune_steps=steps_of(options.tune) if options.tune else 0)
            prices = run_survey(opened, statistics, planning)
            plan = run_plan(opened, statistics, prices, planning, round(float(size) * 1e6))
            compress(opened, plan, statistics, folder, force=True)
            if options.tune:
                with step("Tuning the scales") as tick:
                    print(tune_scales(opened, folder, text, plan, tick), flush=True)
            export_bundle(folder, bundle, context=plan.context)
        manifest = json.loads((bundle / "edge_svd.json").read_bytes())
        size_of = sum(file.stat().st_size for file in bundle.iterdir())
        kl = manifest["plan"]["predicted"]["kl"]
        made = {"file_bytes": size_of, "predicted_kl": kl, "perplexity": losses(str(bundle), options.data)}
        return {**made, **speed(str(bundle))}

    dense = kept("dense", lambda: {"perplexity": losses(options.model, options.data)})
    rows = {named(size): kept(named(size), lambda size=size: row(size)) for size in options.sizes.split(",")}
    if options.retime:
        for name, entry in rows.items():
            entry |= speed(str(options.out / f"b{name}"))
            (options.out / f"{name}.json").write_text(json.dumps(entry))
    print("| MB | " + " | ".join(TEXTS) + " | predicted KL |")
    print("|---|" + "---|" * (len(TEXTS) + 1))
    for entry in rows.values():
        changes = [f"{entry['perplexity'][text] / dense['perplexity'][text] - 1:+.2%}" for text in TEXTS]
        print(f"| {entry['file_bytes'] / 1e6:.2f} | {' | '.join(changes)} | {entry['predicted_kl']:.4f} |")
    name = f"tuned-{today()}.json" if options.tune else f"sizes-{today()}.json"
    results = Path(__file__).parent / "results" / name
    results.write_text(json.dumps({"machine": describe(), "date": today(), "dense": dense, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
