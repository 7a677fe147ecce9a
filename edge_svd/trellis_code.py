"""Trellis codes: tables that turn the last few symbols of a row of bits into an integer level.

A symbol of `bits` bits is stored a weight, and the weight's level depends on the last `window` bits, its own symbol
and those of its predecessors: 2^window levels from `bits` bits a weight, of which the encoder picks the best path.
Rounding noise falls 1.5 to 2.4 dB below the best scalar grid of as many bits (Marcellin & Fischer 1990, "Trellis coded
quantization"; in this bit-shift form Tseng et al. 2024, QTIP, arXiv 2406.11235).

`trellis_codes.json` is made by `benchmarks/train_trellis_codes.py`: levels trained on a source with somewhat heavier
tails than the normal distribution, as weights have, and rounded to int8, so that the int8 kernels take them so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrellisCode:
    """One code.

    Attributes:
        bits: stored bits a weight.
        window: bits that decide a level.
        levels: int8 [2^window], by the window's bits, the weight's own symbol lowest.
        unit: what one step of `levels` is worth for weights of unit variance.
        noise: mean squared error on such weights.
    """

    bits: int
    window: int
    levels: NDArray[np.int8]
    unit: float
    noise: float

    @property
    def memory(self) -> int:
        """How many earlier symbols reach into a window."""
        return -(-self.window // self.bits) - 1


@cache
def trellis_code(bits: int) -> TrellisCode:
    """The code of this many bits, one of `TRELLIS_BITS`."""
    table = json.loads(resources.files(__package__).joinpath("trellis_codes.json").read_text())[str(bits)]
    levels = np.array(table["levels"], np.int8)
    levels.flags.writeable = False
    return TrellisCode(bits, table["window"], levels, table["unit"], table["noise"])
