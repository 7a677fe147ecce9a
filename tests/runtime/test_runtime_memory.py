"""Code that is given back comes back when it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_svd.runtime import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

SCRIPT = """
import numpy as np
import onnxruntime
from edge_svd.runtime.memory import anonymous_bytes, file_bytes, release_code_pages
x = np.random.default_rng(0).standard_normal((64, 64))
expected = np.linalg.svd(x, compute_uv=False)
files, own = file_bytes(), anonymous_bytes()
release_code_pages()
print(files - file_bytes(), own - anonymous_bytes())
assert (np.linalg.svd(x, compute_uv=False) == expected).all()
"""


def test_code_is_given_back_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    files, own = (int(value) for value in done.stdout.split())
    assert files > 5e6 and abs(own) < 1e6


@pytest.mark.parametrize(
    ("line", "code"),
    (
        ("7f00-8f00 r-xp 00001000 fe:00 123    /usr/lib/libc.so.6", True),
        ("7f00-8f00 r-xp 00001000 fe:00 123    /a folder/libc.so.6", True),
        ("7f00-8f00 rwxp 00001000 fe:00 123    /usr/lib/libc.so.6", False),
        ("7f00-8f00 r--p 00001000 fe:00 123    /usr/lib/libc.so.6", False),
        ("7f00-8f00 r-xs 00001000 fe:00 123    /usr/lib/libc.so.6", False),
        ("7f00-8f00 r-xp 00001000 00:01 123    /memfd:jit (deleted)", False),
        ("7f00-8f00 r-xp 00000000 00:00 0      [vdso]", False),
        ("7f00-8f00 r-xp 00000000 00:00 0 ", False),
    ),
)
def test_what_counts_as_code(line: str, code: bool) -> None:
    assert bool(memory._CODE.fullmatch(line)) == code
