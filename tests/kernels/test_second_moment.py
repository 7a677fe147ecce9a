from __future__ import annotations

import pytest
import torch

from edge_svd.errors import InputError
from edge_svd.kernels import dispatch
from edge_svd.kernels.layout import UpperLayout
from edge_svd.kernels.symmetric import SymmetricAccumulator, second_moment


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def expected(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Σ_t w_t x_t x_tᵀ in float64."""
    rows = x.double()
    return (rows if weight is None else rows * weight.double()[:, None]).T @ rows


@pytest.mark.parametrize("block", [1, 2, 7, 16, 40])
def test_every_block_size_gives_the_same_matrix(block: int) -> None:
    x = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))
    accumulator = SymmetricAccumulator(16, block)
    accumulator.add(x)
    torch.testing.assert_close(accumulator.full(), expected(x, None), atol=1e-5, rtol=1e-6)


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
    torch.testing.assert_close(accumulator.mean(), expected(x[:2], torch.tensor([0.25, 0.75])))
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
