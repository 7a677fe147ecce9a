"""The `edge-svd` command inside this process, everything that it prints caught below Python too."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from edge_svd.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and what went to file descriptors 1 and 2."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that `--json` promises on stdout."""
        assert self.code == 0, self.err
        assert self.out.endswith("}\n") and "\n" not in self.out[:-1], self.out
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def refused(self, code: int, *words: str) -> str:
        """Exactly one sentence, in one line behind the lines that tell of progress, and nothing on stdout."""
        *progress, last = self.err.splitlines()
        assert last.startswith("edge-svd: ") and last.endswith("."), self.err
        assert all(" …" in line or line.endswith(" s") for line in progress), self.err
        assert self.err.count("edge-svd: ") == 1 and "Traceback" not in self.err and "Unexpected" not in last, self.err
        assert (self.code, self.out) == (code, ""), self.err
        for word in words:
            assert word in last
        return last


def edge_svd(*arguments: Any, stdin: str = "") -> Outcome:
    """Run the command line with these arguments."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before = sys.stdin, sys.stdout, sys.stderr, sys.argv, os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(stdin), _stream(1), _stream(2)
        sys.argv = ["edge-svd", *map(str, arguments)]
        code: Any = None
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdin, sys.stdout, sys.stderr, sys.argv = before[:4]
            for target, saved in ((1, before[4]), (2, before[5])):
                os.dup2(saved, target)
                os.close(saved)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    assert isinstance(code, int)
    return Outcome(code, *texts)


def _stream(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, "wb", closefd=False), encoding="utf-8", write_through=True)
