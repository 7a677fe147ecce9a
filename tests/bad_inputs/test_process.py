"""In a process of its own: nothing else on stderr, and an interrupt ends with one sentence."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bad_input_damage import DAMAGED_MODELS, UP, flip_a_byte
from bad_input_tools import SIZE, Made
from command_line import Outcome

MAIN = "import sys; sys.argv[0] = 'edge-svd'; from edge_svd.cli import main; main()"


def process(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", MAIN, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(started: subprocess.Popen[str]) -> Outcome:
    printed, err = started.communicate(timeout=300)
    return Outcome(started.returncode, printed, err)


@pytest.mark.parametrize("case", ["budget", "nan", "bundle"])
def test_nothing_else_reaches_stderr(case: str, made: Made, out: Path, tmp_path: Path) -> None:
    """In a fresh process, where libraries print their warnings the first time they are used."""
    if case == "budget":
        ended(process("fit", made.model, "-o", out, "--size", 5000, *made.calibration)).refused(3, "smallest")
    elif case == "nan":
        folder = Path(shutil.copytree(made.model, tmp_path / "model"))
        DAMAGED_MODELS["nan"][0](folder)
        ended(process("fit", folder, "-o", out, "--size", SIZE, *made.calibration)).refused(2, UP)
    else:
        bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
        flip_a_byte(bundle)
        ended(process("run", bundle, "--prompt", "x")).refused(2, "model.onnx.data")


@pytest.mark.parametrize("moment", ["Calibration …", "Proving"])
def test_interrupting_ends_with_one_sentence(moment: str, made: Made, tmp_path: Path) -> None:
    target = tmp_path / "place" / "out"
    target.parent.mkdir()
    started = process("fit", made.model, "-o", target, "--size", SIZE, *made.calibration, "--seed", 7)
    assert started.stderr is not None
    lines = []
    for line in started.stderr:
        lines.append(line)
        if line.startswith(moment):
            time.sleep(0.05)
            started.send_signal(signal.SIGINT)
            break
    outcome = ended(started)
    Outcome(outcome.code, outcome.out, "".join(lines) + outcome.err).refused(1, "Interrupted")
    assert {path.name for path in target.parent.iterdir()} <= {"out.partial"}
