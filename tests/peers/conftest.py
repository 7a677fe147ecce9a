"""The benchmark's folder on the path, as when the script is run."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

sys.path.append(str(ROOT / "benchmarks"))
sys.path.append(str(ROOT / "tests" / "runtime"))
