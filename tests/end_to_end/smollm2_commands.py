"""The command line in processes of its own, and what the tests of a real model ask of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SIZE = 135_000_000
FEW = ("--calibration-windows", "16", "--calibration-window", "128")
"""A small calibration, so that a fit takes minutes and not ten."""

MAIN = "import sys; from edge_svd.cli import main; sys.argv[0] = 'edge-svd'; main()"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", MAIN, *arguments], capture_output=True, text=True, timeout=1500, check=False
    )


def answer(*arguments: str) -> Any:
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
