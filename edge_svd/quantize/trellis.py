"""Matrices in trellis codes: rounded with two-sided error feedback, packed into planes of whole bits.

Symbols lie in rounding order of the columns (`order` says where each column went); row scales are bfloat16. A symbol of
three bits is split into planes of two bits and one, so that every plane fills whole bytes: byte b of a row holds the
columns b, b + w, b + 2w … of that plane from its low bits up, w being the plane's bytes a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edge_svd.errors import Failure
from edge_svd.formats import INT8_LIMIT, PLANES, padded
from edge_svd.quantize.feedback import UnitFactor, by_importance, unit_factor
from edge_svd.quantize.viterbi import encoder
from edge_svd.trellis_code import TrellisCode, trellis_code

ROWS = 4096
"""Rows of a table encoded at a time."""

HEADROOM = {1: 1.0, 2: 1.0, 3: 1.03, 4: 1.12, 5: 1.19, 6: 1.22}
"""What scales are widened by: tails of real matrices weigh more than those that the codes were trained on, the more the
finer the code. On SmolLM2 that takes 2.5% off the noise of 4 bits, a tenth off 5 and a sixth off 6."""

NOISE = {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.98, 5: 0.93, 6: 0.85}
"""Noise with that headroom, on matrices of SmolLM2, as a share of the code's own."""

PUSHES = 2
"""How often the push of the feedback on the feedback's own targets is followed."""

COSTLY, ALSO_COSTLY, FITTINGS = 0.03, 0.01, 3
"""A weight with this share of its matrix's loss is an outlier at an input of massive size, out where levels are few.
Where there is one, the matrix is rounded again, so many times at most, on scales that put the level which it got where
it should be, and those of others that have the second share."""

WIDENINGS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.5, 8.0)

Symbols = NDArray[np.uint8]


@dataclass(frozen=True)
class InputFactor:
    """The input metric in rounding order: `order`, the columns from the first rounded to the last.

    Columns that pad a row to a multiple of 16 come last and count for next to nothing.
    """

    order: torch.Tensor
    factor: UnitFactor

    @classmethod
    def of(cls, c_in: torch.Tensor) -> InputFactor:
        n = len(c_in)
        if padded(n) != n:
            wide = torch.zeros(padded(n), padded(n), dtype=c_in.dtype)
            wide[:n, :n] = c_in
            wide.diagonal()[n:] = 1e-6 * float(c_in.diagonal().mean())
            c_in = wide
        order = by_importance(c_in)
        return cls(order, unit_factor(c_in[order][:, order]))

    def column_weight(self, n: int) -> torch.Tensor:
        """What an η in each of the n columns costs, float64 [n], columns in their own places."""
        weight = torch.empty_like(self.factor.plain)
        weight[self.order] = self.factor.plain
        return weight[:n]


@dataclass(frozen=True)
class Trellis:
    """A rounded matrix: symbols uint8 [m, padded n] in rounding order, scale bfloat16 [m] a level, order [padded n]."""

    code: TrellisCode
    symbols: Symbols
    scale: torch.Tensor
    order: torch.Tensor

    def levels(self) -> NDArray[np.int8]:
        """int8 [m, padded n], columns in their own places."""
        return decode(self.symbols, self.code)[:, torch.argsort(self.order).numpy()]

    def matrix(self) -> torch.Tensor:
        """The rounded matrix, fp32 [m, padded n]."""
        return torch.from_numpy(self.levels()).float() * self.scale.float()[:, None]


def target_power(
    w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor | torch.Tensor, code: TrellisCode
) -> torch.Tensor:
    """Mean square, float64 [m], of what the rows of W [m, n] are rounded from: the weights and what the feedback adds.

    E - η is added, E = B⁻ᵀ η A⁻¹. At one bit that may be larger than the weights, and a scale that does not expect it
    clips, which the feedback passes on and on. Weighted by columns as the inputs are.
    """
    own = w.double().square().mean(1)
    reach = c_out.reach.double() if isinstance(c_out, UnitFactor) else None
    power = own
    for _ in range(PUSHES):
        across = power if reach is None else reach @ power
        power = own + (code.noise * (inputs.factor.gain * across - power)).clamp_min(0)
    return power


def row_scale(
    w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor | torch.Tensor, code: TrellisCode
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale bfloat16 [m], expected mean of η² float64 [m], weighted as the inputs are) of every row of W [m, n].

    The code was made for unit variance. A wider scale coarsens every weight but reaches outliers, single ones of which
    meet the few inputs of massive size.
    """
    share = inputs.column_weight(w.shape[1]) / inputs.factor.plain.sum().clamp_min(1e-300)
    magnitude = w.float().abs()
    largest = magnitude.amax(1).double()
    root = target_power(w, inputs, c_out, code).sqrt_()
    noise, best = torch.full_like(root, torch.inf), root
    for widening in WIDENINGS:
        unit = root * (code.unit * HEADROOM[code.bits] * widening)
        beyond = torch.zeros_like(unit)
        far = torch.nonzero(largest > INT8_LIMIT * unit)[:, 0]
        if len(far):
            excess = magnitude[far] - (INT8_LIMIT * unit[far, None]).float()
            beyond[far] = excess.clamp_min_(0).square_().double() @ share
        total = NOISE[code.bits] * code.noise * (root * widening).square() + beyond
        noise, best = torch.where(total < noise, total, noise), torch.where(total < noise, unit, best)
    scale = best.to(torch.bfloat16)
    return torch.where(scale > 0, scale, torch.ones_like(scale)), noise


def round_trellis(w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor | torch.Tensor, bits: int) -> Trellis:
    """Round W [m, n] to `bits` bits a weight.

    `c_out` is the output metric's factor, or a vector [m] of row weights where rows are independent (a table).

    Raises:
        Failure: W holds a NaN or an Inf.
    """
    if not torch.isfinite(w).all():
        raise Failure("Cannot round a matrix that holds NaN or Inf.")
    code = trellis_code(bits)
    scale, _ = row_scale(w, inputs, c_out, code)
    made = _encoded(w, inputs, c_out, code, scale)
    if not isinstance(c_out, UnitFactor):
        return made
    errors = _feedback_errors(w, made, inputs, c_out)
    lost, most = _lost(errors, inputs, c_out), len(w)
    for _ in range(FITTINGS):
        fitted = _fitted(made, errors, lost, most)
        if torch.equal(fitted, made.scale):
            break
        again = _encoded(w, inputs, c_out, code, fitted)
        found = _feedback_errors(w, again, inputs, c_out)
        less = _lost(found, inputs, c_out)
        if float(less.sum()) < float(lost.sum()):
            made, errors, lost = again, found, less
        else:
            # Rows meet through the feedback: the costliest alone may still gain.
            most = 1
    return made


def _fitted(made: Trellis, errors: torch.Tensor, lost: torch.Tensor, most: int) -> torch.Tensor:
    """The scales bfloat16 [m] of a rounding, those of the `most` rows with the costliest outliers changed so that the
    outlier's level is right."""
    worst, at = lost.max(1)
    total = float(lost.sum())
    if float(worst.max()) <= COSTLY * total:
        return made.scale
    rows = torch.nonzero(worst > ALSO_COSTLY * total)[:, 0]
    got = made.matrix()[rows, at[rows]]
    share = 1 + errors[rows, at[rows]] / got
    # The row's other weights lose as the scale grows.
    gain = torch.where(share.isfinite(), worst[rows] - (share.square() - 1) * (lost[rows].sum(1) - worst[rows]), 0)
    useful = (share > 0.5) & (gain > 0)
    rows, share, gain = rows[useful], share[useful], gain[useful]
    chosen = torch.argsort(gain, descending=True, stable=True)[:most]
    scale = made.scale.clone()
    scale[rows[chosen]] = (scale[rows[chosen]].float() * share[chosen]).to(scale.dtype)
    return scale


def _feedback_errors(w: torch.Tensor, made: Trellis, inputs: InputFactor, c_out: UnitFactor) -> torch.Tensor:
    """η = Bᵀ E A of a rounding, fp32 [m, padded n], columns in their own places: what each weight with its feedback was
    rounded by."""
    error = torch.nn.functional.pad(w.float(), (0, len(inputs.order) - w.shape[1])) - made.matrix()
    own = torch.empty_like(error)
    own[:, inputs.order] = c_out.upper.T @ error[:, inputs.order] @ inputs.factor.upper
    return own


def _lost(errors: torch.Tensor, inputs: InputFactor, c_out: UnitFactor) -> torch.Tensor:
    """What every η costs, float64 [m, padded n]: their sum is twice the loss."""
    return c_out.plain[:, None] * errors.double().square() * inputs.column_weight(len(inputs.order))


def _encoded(
    w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor | torch.Tensor, code: TrellisCode, scale: torch.Tensor
) -> Trellis:
    """W [m, n] in a code on the scales [m] of its rows, with error feedback."""
    if isinstance(c_out, UnitFactor):
        below, weight = c_out.upper.T.contiguous().numpy(), c_out.weight
    else:
        below, weight = np.zeros((0, 0), np.float32), c_out
    right = inputs.factor.upper.T.contiguous().numpy()
    columns = inputs.factor.weight.float().numpy()
    rows = (weight / weight.mean().clamp_min(1e-30)).float().numpy()
    encode = encoder(code.bits, code.window)
    levels = code.levels.astype(np.float32)
    w = torch.nn.functional.pad(w, (0, len(inputs.order) - w.shape[1]))
    symbols = np.empty(tuple(w.shape), np.uint8)
    above = np.zeros((code.memory, w.shape[1]), np.uint8)
    step = ROWS if not len(below) else len(symbols)
    for start in range(0, len(symbols), step):
        piece = slice(start, start + step)
        ordered = w[piece][:, inputs.order].float().contiguous().numpy()
        made = symbols[piece]
        encode(ordered, right, below, rows[piece], columns, scale[piece].float().numpy(), levels, above, made)
        above = made[len(made) - code.memory :] if len(made) >= code.memory else above
    return Trellis(code, symbols, scale, inputs.order)


def predicted_loss(w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor, bits: int) -> float:
    """½ Σ d'_i d_j η_ij² expected of such a rounding, nats per token, without rounding anything."""
    _, noise = row_scale(w, inputs, c_out, trellis_code(bits))
    return 0.5 * float((c_out.plain * noise).sum()) * float(inputs.factor.plain.sum())


def sampled_error(w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor, bits: int, seed: int) -> torch.Tensor:
    """An error [m, n] fp32 as such a rounding makes them: E = B⁻ᵀ η A⁻¹ with random η of the expected size."""
    _, noise = row_scale(w, inputs, c_out, trellis_code(bits))
    return sampled_rows(w, inputs, noise, seed, c_out)


def sampled_rows(
    w: torch.Tensor, inputs: InputFactor, noise: torch.Tensor, seed: int, c_out: UnitFactor | None = None
) -> torch.Tensor:
    """The same from the mean η² of each row, noise [m]; without `c_out` for rows that do not reach each other."""
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(w.shape[0], len(inputs.order), generator=generator) * noise.sqrt().float()[:, None]
    if c_out is not None:
        e = torch.linalg.solve_triangular(c_out.upper.T, e, upper=False, unitriangular=True)
    e = torch.linalg.solve_triangular(inputs.factor.upper, e, upper=True, left=False, unitriangular=True)
    return e[:, torch.argsort(inputs.order)][:, : w.shape[1]].contiguous()


def decode(symbols: Symbols, code: TrellisCode) -> NDArray[np.int8]:
    """Levels int8 [m, n] of symbols in rounding order."""
    full = symbols.astype(np.uint16)
    for back in range(1, code.memory + 1):
        if back < min(symbols.shape):
            full[back:, :-back] |= symbols[:-back, back:].astype(np.uint16) << (code.bits * back)
    return code.levels[full & ((1 << code.window) - 1)]


def pack(symbols: Symbols, bits: int) -> dict[str, Symbols]:
    """Suffix → plane uint8 [m, n · width / 8]; n a multiple of 16."""
    planes, shift = {}, 0
    for width in PLANES[bits]:
        part = (symbols >> shift) & ((1 << width) - 1)
        shift += width
        pieces = np.split(part, 8 // width, axis=1)
        planes[f"p{width}"] = sum((piece << (width * at) for at, piece in enumerate(pieces)), np.zeros_like(pieces[0]))
    return planes


def unpack(planes: dict[str, Symbols], bits: int) -> Symbols:
    """Inverse of `pack`."""
    shift = 0
    parts: list[Symbols] = []
    for width in PLANES[bits]:
        plane, mask = planes[f"p{width}"], (1 << width) - 1
        part = np.concatenate([(plane >> (width * at)) & mask for at in range(8 // width)], axis=1)
        parts.append((part << shift).astype(np.uint8))
        shift += width
    found: Symbols = np.bitwise_or.reduce(parts)
    return found
