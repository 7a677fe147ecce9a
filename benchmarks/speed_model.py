"""Does the predicted decoding speed come true? Plans of different kinds, `bench` in fresh processes, medians.

    python benchmarks/speed_model.py MODEL [PLAN.json ...] [--device FILE.toml] [--rounds 5]

Measure the device first, in the same quiet hour: edge-svd bench BUNDLE --profile FILE.toml. Rounds go over all plans in
turn, so that a busy minute hits all of them. Prints the table and writes benchmarks/results/speed-model-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from memory_model import RESULTS, kinds
from stand_in import stand_in

from edge_svd.devices import DEFAULT
from edge_svd.files import atomic_write
from edge_svd.formats import SiteFormat
from edge_svd.models import open_model
from edge_svd.planner.plan import Plan
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bench import bench
from edge_svd.steps import Planning, setting_of

CONTEXT, NEW = 2048, 64
WITHIN = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("plans", nargs="*", type=Path)
    parser.add_argument("--device", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    opened = open_model(options.model)
    sites = [site for site in opened.sites if not site.tied_to]
    chosen = {
        name: {site.name: SiteFormat("int8") if site.type in ("embedding", "lm_head") else make(site) for site in sites}
        for name, make in kinds().items()
    }
    chosen |= {path.stem: Plan.read(path).formats for path in options.plans}
    setting = setting_of(opened, Planning(context=CONTEXT, device=options.device))
    prompt = setting.speed_context
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        bundles = {
            name: stand_in(opened, formats, Path(folder) / str(index), CONTEXT)
            for index, (name, formats) in enumerate(chosen.items())
        }
        measured: dict[str, list[float]] = {name: [] for name in bundles}
        for _ in range(options.rounds):
            for name, bundle in bundles.items():
                found = bench(bundle, prompt_tokens=prompt, new_tokens=NEW, capacity=prompt + NEW)
                measured[name].append(found["decode_tokens_per_s"])
    rows = []
    for name, speeds in measured.items():
        predicted, median = 1 / setting.seconds(chosen[name]), statistics.median(speeds)
        rows.append({"plan": name, "predicted": predicted, "measured": median, "rounds": speeds})
        off = predicted / median - 1
        print(
            f"{name:<24}predicted {predicted:6.1f}  measured {median:6.1f} tokens/s ({min(speeds):.1f} to "
            f"{max(speeds):.1f})  {off:+6.1%}{'' if abs(off) <= WITHIN else '  OUT'}"
        )
    report = {"date": today(), "machine": describe(), "device": options.device, "rows": rows}
    atomic_write(RESULTS / f"speed-model-{today()}.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
