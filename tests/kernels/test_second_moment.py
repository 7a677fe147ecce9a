from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_svd.errors import InputError
from edge_svd.kernels import dispatch
from edge_svd.kernels.layout import UpperLayout
from edge_svd.kernels.symmetric import SymmetricAccumulator, second_moment

sys.path.insert(0, str(Path(__file__).parent))
from second_moment_cases import TOLERANCE, cases, error, expected, nan_pattern


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


@pytest.mark.parametrize(("width", "dtype", "variant"), cases())
def test_reference_is_the_sum_of_outer_products(width: int, dtype: str, variant: str) -> None:
    assert error(width, dtype, variant, "cpu") <= TOLERANCE[dtype]


def test_nan_reaches_its_row_and_column_only() -> None:
    assert nan_pattern("cpu")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernel_under_its_interpreter() -> None:
    script = Path(__file__).parent / "second_moment_cases.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", dispatch.VARIABLE: "triton"}
    done = subprocess.run([sys.executable, script, "cpu"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases()) + 1
    assert [case for case in results if not case["error"] <= case["limit"]] == []


@pytest.mark.parametrize("block", [1, 2, 7, 16, 40])
def test_every_block_size_gives_the_same_matrix(block: int) -> None:
    x = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))
    accumulator = SymmetricAccumulator(16, block)
    accumulator.add(x)
    torch.testing.assert_close(accumulator.full(), expected(x, None, None), atol=1e-5, rtol=1e-6)


def test_layout_offsets_follow_the_strips() -> None:
    for n, block in ((1, 1), (10, 3), (12, 4), (576, 192), (5, 9)):
        layout, at = UpperLayout(n, block), 0
        for start in layout.starts:
            assert layout.offset(start) == at
            at += layout.rows(start) * (n - start)
        assert layout.size == at


def test_storage_is_smaller_than_the_full_matrix() -> None:
    assert SymmetricAccumulator(576).nbytes <= 0.67 * 4 * 576**2
    assert SymmetricAccumulator(1536).nbytes <= 0.57 * 4 * 1536**2


def test_mean_divides_by_the_weights_that_counted() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    accumulator = SymmetricAccumulator(2)
    accumulator.add(x, torch.tensor([1.0, 3.0, 5.0]), torch.tensor([True, True, False]))
    assert accumulator.total == 4.0
    torch.testing.assert_close(accumulator.mean(), expected(x[:2], torch.tensor([0.25, 0.75]), None))
    with pytest.raises(InputError, match="no mean"):
        SymmetricAccumulator(2).mean()


def test_result_is_positive_for_weighted_half_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(24, 40, generator=generator) * torch.logspace(-2, 1, 40)).bfloat16()
    eigenvalues = torch.linalg.eigvalsh(second_moment(x, weight=torch.rand(24, generator=generator)).full())
    assert float(eigenvalues[0]) >= -1e-6 * float(eigenvalues[-1])


def test_merge_is_a_sum() -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    left, right = second_moment(x[:3]), second_moment(x[3:])
    left.merge(right)
    torch.testing.assert_close(left.full(), second_moment(x).full(), atol=1e-5, rtol=1e-5)
    assert left.total == 8
    with pytest.raises(InputError, match="laid out"):
        left.merge(SymmetricAccumulator(6, 2))


@pytest.mark.parametrize(
    ("x", "weight", "mask"),
    [
        (torch.zeros(0, 4), None, None),
        (torch.zeros(2, 5), None, None),
        (torch.zeros(1, 2, 4), None, None),
        (torch.zeros(2, 4, dtype=torch.float64), None, None),
        (torch.zeros(2, 4), torch.ones(3), None),
        (torch.zeros(2, 4), None, torch.ones(2)),
    ],
)
def test_bad_input_is_refused(x: torch.Tensor, weight: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    with pytest.raises(InputError):
        SymmetricAccumulator(4).add(x, weight, mask)


def test_dispatch_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    installed = importlib.util.find_spec("triton") is not None
    assert dispatch.choose(cpu) == "reference"
    assert dispatch.choose(card) == ("triton" if installed else "reference")
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose(card) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="triton"):
        dispatch.choose(cpu)
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(InputError, match="reference or triton"):
        dispatch.choose(cpu)
