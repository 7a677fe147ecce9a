"""How the upper half of a symmetric matrix lies in one flat buffer."""

from __future__ import annotations

from dataclasses import dataclass

from edge_svd.runtime.errors import InputError

# Measured with `benchmarks/second_moment.py` on two AVX-512 cores, 512 tokens a call: blocks of 128 to 288
# take 0.70 to 0.82 of the time of a full product at width 576 and 0.64 to 0.68 at 1536; 192 divides both widths.
DEFAULT_BLOCK = 192


@dataclass(frozen=True)
class UpperLayout:
    """Row strips of `block` rows each; the strip that starts at row s holds columns s..n, row-major.

    Elements below the diagonal that fall into a strip's square corner are stored but unspecified: readers use the upper
    triangle only.
    """

    n: int
    block: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.block < 1:
            raise InputError(f"A symmetric matrix needs a positive width and block, not {self.n} and {self.block}.")

    @property
    def starts(self) -> range:
        """First row of every strip."""
        return range(0, self.n, self.block)

    def rows(self, start: int) -> int:
        """Rows of the strip that starts at row `start`."""
        return min(self.block, self.n - start)

    def offset(self, start: int) -> int:
        """Where that strip begins in the flat buffer, in elements; all strips before it are full."""
        strips = start // self.block
        return self.block * (strips * self.n - self.block * strips * (strips - 1) // 2)

    @property
    def size(self) -> int:
        """Elements of the whole buffer."""
        last = self.starts[-1]
        return self.offset(last) + self.rows(last) * (self.n - last)
