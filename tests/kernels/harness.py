"""Runs the cases of one kernel and prints one JSON line each: `python harness.py NAME cpu|cuda`.

A script, so that Triton's interpreter (TRITON_INTERPRET=1 must be set before Triton is imported) stays out of the test
process. NAME_cases.py has CASES, a list of tuples, and `error(*case, device)` → (what it is off by, what it may be).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KERNELS = ("second_moment", "kl_seeds", "rank_components", "factored_linear", "row_rounding", "block_rounding")


def cases(name: str) -> Any:
    """The module with the cases of a kernel."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(f"{name}_cases")


def broken(name: str, device: str) -> list[dict[str, Any]]:
    """The cases of a kernel that fail as Triton kernel, run in a process of its own, on the card or interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["EDGE_SVD_KERNELS"] = "triton"
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, __file__, name, device], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        return [{"case": name, "fault": done.stderr}]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    found = [result for result in results if not result["error"] <= result["limit"]]
    return found if len(results) == len(cases(name).CASES) else [*found, {"case": name, "fault": "cases are missing"}]


def main(name: str, device: str) -> None:
    module = cases(name)
    for case in module.CASES:
        error, limit = module.error(*case, device)
        print(json.dumps({"case": " ".join(map(str, case)), "error": float(error), "limit": limit}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
