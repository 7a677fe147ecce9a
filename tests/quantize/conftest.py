from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode does not put a test's folder on the path, and the tests share a helper.
sys.path.append(str(Path(__file__).parent))
