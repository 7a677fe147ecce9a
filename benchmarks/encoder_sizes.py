"""How close a sentence encoder stays to its dense model at shares of its fp32 bytes, and as plain int8.

    python benchmarks/encoder_sizes.py MODEL_FOLDER --calibration TEXT --text TEXT [--text TEXT] [--out FOLDER]

Every bundle is made by `fit`, whole: one calibration and one price list serve all. The cosine is that of the exported
bundle, through onnxruntime, to the dense model in torch, over the first `--passages` lines of every text, of at most
128 tokens. What is finished lies in OUT and is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edge_svd.evaluate.cosine import evaluate_encoder
from edge_svd.fit_encoder import fit_encoder
from edge_svd.planner.targets import Targets
from edge_svd.report.machine import describe, today
from edge_svd.steps import ENCODER_CALIBRATION, Calibration, Planning

LONGEST = 128
INT8 = "int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", action="append", required=True)
    parser.add_argument("--calibration-windows", type=int, default=ENCODER_CALIBRATION.windows, help="passages")
    parser.add_argument("--text", action="append", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=400, help="lines of every text")
    parser.add_argument("--parts", default="2,4,6,8", help="fp32 bytes over the bundle's")
    parser.add_argument("--out", type=Path, default=Path("out/encoder-sizes"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dense_bytes = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
    calibration = Calibration(
        tuple(options.calibration), options.calibration_windows, ENCODER_CALIBRATION.window, ENCODER_CALIBRATION.seed
    )

    def row(name: str) -> dict[str, Any]:
        plain = name == INT8
        size = dense_bytes if plain else int(dense_bytes / float(name))
        planning = Planning(candidates=INT8) if plain else Planning()
        bundle = options.out / f"bundle-{name}"
        made = fit_encoder(
            str(options.model), bundle, Targets(size), calibration, planning, force=True, threads=options.threads
        )
        found = {
            text.name.partition(".txt")[0]: evaluate_encoder(
                str(bundle),
                text,
                reference=str(options.model),
                longest=LONGEST,
                count=options.passages,
                threads=options.threads,
            ).to_json()
            for text in options.text
        }
        return {
            "file_bytes": made.plan.file_bytes,
            "predicted_loss": made.plan.kl,
            "measured": made.measured,
            "proof": made.proof.to_json(),
            "texts": found,
        }

    rows: dict[str, Any] = {}
    for name in [INT8, *options.parts.split(",")]:
        file = options.out / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(row(name)))
        rows[name] = json.loads(file.read_text())
    texts = [text.name.partition(".txt")[0] for text in options.text]
    print("| bundle | MB | " + " | ".join(f"cosine, {text}" for text in texts) + " | predicted |")
    print("|---|" + "---|" * (len(texts) + 2))
    for name, made in rows.items():
        label = "plain int8" if name == INT8 else f"fit, 1/{name} of fp32"
        cosines = " | ".join(f"{made['texts'][text]['cosine']:.5f}" for text in texts)
        print(f"| {label} | {made['file_bytes'] / 1e6:.2f} | {cosines} | {1 - made['predicted_loss']:.5f} |")
    results = Path(__file__).parent / "results" / f"encoder-sizes-{today()}.json"
    used = {"sources": [Path(source).name for source in options.calibration], "passages": options.calibration_windows}
    made = {"machine": describe(), "date": today(), "dense_bytes": dense_bytes, "calibration": used, "rows": rows}
    results.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
