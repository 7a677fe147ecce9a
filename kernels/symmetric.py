"""Second moments of activations, accumulated and stored as the upper half of a symmetric matrix."""

from __future__ import annotations

import torch

from edge_svd.kernels.layout import DEFAULT_BLOCK, UpperLayout
from edge_svd.kernels.second_moment import accumulate
from edge_svd.runtime.errors import InputError


class SymmetricAccumulator:
    """Σ_t w_t x_t x_tᵀ over every `add`, in fp32, upper strips only (two thirds of n² at n = 576, 56% at n = 1536).

    `total` is Σ_t w_t over the tokens added, so that `mean()` is the weighted second moment.
    """

    def __init__(self, n: int, block: int = DEFAULT_BLOCK, device: torch.device | str = "cpu") -> None:
        self.layout = UpperLayout(n, block)
        self.buffer = torch.zeros(self.layout.size, dtype=torch.float32, device=device)
        self._total = torch.zeros((), dtype=torch.float64, device=device)

    @classmethod
    def of(cls, matrix: torch.Tensor) -> SymmetricAccumulator:
        """One that holds the upper half of a symmetric matrix [n, n] already, in fp32."""
        made = cls(len(matrix), device=matrix.device)
        for start in made.layout.starts:
            strip = matrix[start : start + made.layout.rows(start), start:].reshape(-1)
            offset = made.layout.offset(start)
            made.buffer[offset : offset + len(strip)] = strip
        return made

    @property
    def n(self) -> int:
        """Width of the matrix."""
        return self.layout.n

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.buffer.nbytes

    @property
    def total(self) -> float:
        """Σ_t w_t so far; the number of tokens where no weights were given."""
        return float(self._total)

    def add(self, x: torch.Tensor, weight: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> None:
        """Adds x [tokens, n] (fp32, fp16 or bf16); weight [tokens] ≥ 0; mask bool [tokens], False leaves a token out.

        NaN and infinity propagate; a negative weight becomes NaN. Raises InputError on what does not fit.
        """
        accumulate(self.buffer, self.layout, x, weight, mask)
        if weight is None:
            self._total += x.shape[0] if mask is None else mask.sum()
        else:
            self._total += (
                (weight if mask is None else torch.where(mask, weight, 0.0)).detach().sum(dtype=torch.float64)
            )

    def merge(self, other: SymmetricAccumulator) -> None:
        """Adds what another accumulator of the same layout has seen."""
        if other.layout != self.layout:
            raise InputError(f"Cannot add a second moment laid out as {other.layout} to one laid out as {self.layout}.")
        self.buffer += other.buffer
        self._total += other._total

    def restore(self, buffer: torch.Tensor, total: float) -> None:
        """Continue from a saved `buffer` and `total`. Raises InputError where the buffer belongs to another layout."""
        if buffer.shape != self.buffer.shape:
            raise InputError(
                f"A saved second moment of {buffer.numel()} numbers does not fit a layout of {self.buffer.numel()}."
            )
        self.buffer.copy_(buffer)
        self._total.fill_(total)

    def full(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The whole matrix [n, n], exactly symmetric."""
        matrix = torch.empty(self.n, self.n, dtype=dtype, device=self.buffer.device)
        for start in self.layout.starts:
            count, offset = self.layout.rows(start), self.layout.offset(start)
            width, end = self.n - start, start + count
            strip = self.buffer[offset : offset + count * width].view(count, width)
            square = strip[:, :count]
            matrix[start:end, start:end] = square.triu() + square.triu(1).T
            matrix[start:end, end:] = strip[:, count:]
            matrix[end:, start:end] = strip[:, count:].T
        return matrix

    def mean(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """`full` over `total`: E[x xᵀ] [n, n]. Raises InputError where nothing was added."""
        if self.total <= 0:
            raise InputError("A second moment over no tokens (or only tokens of weight zero) has no mean.")
        return self.full(dtype) / self.total


def second_moment(
    x: torch.Tensor,
    out: SymmetricAccumulator | None = None,
    weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> SymmetricAccumulator:
    """out += Σ_t w_t x_t x_tᵀ; a new accumulator where `out` is None. Arguments as in `SymmetricAccumulator.add`."""
    if out is None:
        if x.ndim != 2:
            raise InputError(f"Activations must be [tokens, width], not {list(x.shape)}.")
        out = SymmetricAccumulator(x.shape[1], device=x.device)
    out.add(x, weight, mask)
    return out
