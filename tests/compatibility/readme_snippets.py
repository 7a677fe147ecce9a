"""The Python of README's section on other runtimes, and what it prints where `out` is a bundle."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def printed(package: str, parent: Path) -> str:
    """Run the one block that imports from `package`, as it stands there, in the folder that holds `out`."""
    section = README.read_text().split("## In other runtimes\n")[1].split("\n## ")[0]
    found = [code for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if package in code]
    assert len(found) == 1
    with contextlib.chdir(parent), contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(found[0], f"README.md ({package})", "exec"), {})
    return output.getvalue()
