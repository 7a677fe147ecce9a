"""Every kernel against its plain reference, in torch here and as Triton kernel in the interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_svd.errors import InputError
from edge_svd.formats import BLOCK_STEPS
from edge_svd.kernels import block_rounding, dispatch, kl_seeds, rank_components, row_rounding
from edge_svd.kernels.factored_linear import factored_linear
from edge_svd.kernels.rank_components import Components, Part
from tests.kernels.harness import KERNELS, broken, cases
from tests.tiny_folder import tiny_folder, tiny_text

TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


@pytest.mark.parametrize("name", KERNELS)
def test_in_plain_torch(name: str) -> None:
    module = cases(name)
    results = {case: module.error(*case, "cpu") for case in module.CASES}
    assert {case: result for case, result in results.items() if not result[0] <= result[1]} == {}


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("name", KERNELS)
def test_by_triton_in_its_interpreter(name: str) -> None:
    assert broken(name, "cpu") == []


def test_every_kernel_of_triton_has_its_cases() -> None:
    folder = dispatch.__file__
    assert folder is not None
    kernels = {path.stem.removesuffix("_triton") for path in Path(folder).parent.glob("*_triton.py")}
    assert kernels == set(KERNELS)


def part(k: int = 4, n: int = 6, m: int = 5) -> Part:
    return Part(torch.ones(k, n), torch.ones(k, m))


REFUSED: list[tuple[str, Any]] = [
    ("logits must be", lambda: kl_seeds.sampled(torch.zeros(0, 5), torch.zeros(0, 1))),
    ("logits must be", lambda: kl_seeds.top(torch.zeros(3, 0), 1)),
    ("logits must be float32", lambda: kl_seeds.variance(torch.zeros(3, 4, dtype=torch.float64))),
    ("random numbers", lambda: kl_seeds.sampled(torch.zeros(2, 5), torch.zeros(3, 1))),
    ("slope must be", lambda: kl_seeds.variance(torch.zeros(2, 5), torch.zeros(2, 4))),
    ("6 most probable of 5", lambda: kl_seeds.top(torch.zeros(2, 5), 6)),
    ("no number 3", lambda: kl_seeds.exact(kl_seeds.top(torch.zeros(2, 5), 3), 3, torch.ones(2, 1))),
    ("rows of A", lambda: Part(torch.zeros(0, 4), torch.zeros(0, 5))),
    ("rows of A must be int8", lambda: Part(torch.zeros(2, 4), torch.zeros(2, 5), torch.ones(2))),
    ("columns of B", lambda: Part(torch.zeros(2, 4), torch.zeros(3, 5))),
    ("at least one", lambda: Components(())),
    ("same inputs", lambda: Components((part(), part(n=7)))),
    ("inputs must be [any, 6]", lambda: factored_linear(torch.zeros(3, 7), Components((part(),)))),
    ("inputs must be [any, 6]", lambda: factored_linear(torch.zeros(0, 6), Components((part(),)))),
    ("bias must be [5]", lambda: factored_linear(torch.zeros(3, 6), Components((part(),)), torch.zeros(4))),
    ("of 2 parts", lambda: factored_linear(torch.zeros(3, 6), Components((part(),)), None, [None, None])),
    ("Components 0 to 4 were", lambda: rank_components.gather(part(), torch.tensor([0, 4]))),
    ("Components -1 to 2 were", lambda: rank_components.gather(part(), torch.tensor([2, -1]))),
    ("chosen components must be int32", lambda: rank_components.gather(part(), torch.tensor([1.0]))),
    ("chosen components must be [any]", lambda: rank_components.gather(part(), torch.zeros(0, dtype=torch.int64))),
    ("matrix must be", lambda: row_rounding.round_rows(torch.zeros(0, 4), 127)),
    ("127 or 32512", lambda: row_rounding.round_rows(torch.zeros(1, 4), 7)),
    ("gradient must be", lambda: row_rounding.round_rows(torch.zeros(1, 4), 127, torch.zeros(2, 4))),
    ("Blocks of 3", lambda: block_rounding.search(torch.zeros(1, 6), torch.ones(6), 4, 3, True)),
    ("Blocks of 4", lambda: block_rounding.search(torch.zeros(1, 6), torch.ones(6), 4, 4, True)),
    ("not 3", lambda: block_rounding.search(torch.zeros(1, 8), torch.ones(8), 3, 4, True)),
    ("column weights", lambda: block_rounding.search(torch.zeros(1, 8), torch.ones(4), 4, 4, True)),
]


@pytest.mark.parametrize(("words", "call"), REFUSED)
def test_what_does_not_fit_is_refused(words: str, call: Any) -> None:
    with pytest.raises(dispatch.InputError) as caught:
        call()
    assert words in str(caught.value)


def test_chosen_components_are_the_same_gathered_or_read_where_they_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = Part(torch.randn(9, 6, generator=generator), torch.randn(9, 5, generator=generator))
    chosen, x = torch.tensor([7, 0, 3]), torch.randn(4, 6, generator=generator)
    gathered = factored_linear(x, Components((rank_components.gather(whole, chosen),)))
    assert torch.equal(factored_linear(x, Components((whole,)), chosen=[chosen]), gathered)
    assert Components((whole,)).rank == 9 and Components((whole,)).nbytes == 4 * 9 * 11
    torch.testing.assert_close(x @ Components((whole, whole)).product().T, 2 * factored_linear(x, Components((whole,))))


def test_dispatch_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert dispatch.choose(cpu) == "reference"
    assert dispatch.choose(card) == ("triton" if TRITON else "reference")
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose(card) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="triton"):
        dispatch.choose(cpu)
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(InputError, match="reference or triton"):
        dispatch.choose(cpu)


@pytest.mark.slow
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_a_plan_made_by_triton_is_the_one_made_without(tmp_path: Path) -> None:
    """Calibration and prices in Triton's interpreter and in plain torch: bytes and KL within 0.1%."""
    model = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text(tiny_text())
    made = []
    for name, own in (("reference", {}), ("triton", {"TRITON_INTERPRET": "1"})):
        environment = os.environ | own | {dispatch.VARIABLE: name, "EDGE_SVD_CACHE": str(tmp_path / name)}

        def run(*arguments: str, environment: dict[str, str] = environment) -> str:
            line = [sys.executable, "-m", "edge_svd.cli", *arguments]
            done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
            return done.stdout

        stats, plan = str(tmp_path / f"{name}-stats"), tmp_path / f"{name}.json"
        text = ["--calibration", str(tmp_path / "text.txt"), "--calibration-windows", "8"]
        run("calibrate", str(model), *text, "--calibration-window", "48", "-o", stats)
        size = ["--size", "100000", "--candidates", "int8,low-rank"]
        run("plan", str(model), "--stats", stats, *size, "-o", str(plan))
        made.append(json.loads(plan.read_text())["predicted"])
    plain, kernels = made
    assert kernels["file_bytes"] == pytest.approx(plain["file_bytes"], rel=1e-3)
    assert kernels["kl"] == pytest.approx(plain["kl"], rel=1e-3)


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import torch
from edge_svd.kernels import row_rounding

x = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
def work(number):
    return row_rounding.round_rows(x + number % 2, 127).q
alone = [work(0), work(1)]
with ThreadPoolExecutor(4) as pool:
    assert all(torch.equal(made, alone[number % 2]) for number, made in enumerate(pool.map(work, range(24))))
"""


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_threads_may_share_the_interpreter() -> None:
    environment = os.environ | {dispatch.VARIABLE: "triton", "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_block_scales_have_the_steps_of_the_file_format() -> None:
    assert block_rounding.STEPS == BLOCK_STEPS
