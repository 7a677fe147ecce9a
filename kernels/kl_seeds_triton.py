"""`kl_seeds` as Triton kernels: a survey of chunks of the vocabulary, and a pass that writes cotangents."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edge_svd.kernels.launch import kernel

CHUNK = 4096
"""Logits that one program of the survey holds in registers."""

# A program writes cotangents of this many rows in this many columns, whose variances it adds up in registers.
ROWS = 16
COLUMNS = 1024


@kernel
def _survey(
    logits_ptr: Any,
    largest_ptr: Any,
    sums_ptr: Any,
    values_ptr: Any,
    places_ptr: Any,
    vocabulary: Any,
    stride_row: Any,
    stride_column: Any,
    k: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    columns = part * chunk + tl.arange(0, chunk)
    at = logits_ptr + row * stride_row + columns.to(tl.int64) * stride_column
    z = tl.load(at, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
    largest = tl.max(z, axis=0)
    known = tl.where(largest == float("-inf"), 0.0, largest)  # a chunk of -inf has a sum of 0, not NaN
    tl.store(largest_ptr + row * parts + part, largest)
    tl.store(sums_ptr + row * parts + part, tl.sum(tl.exp(z - known), axis=0))
    # k is small, so the largest is taken out k times.
    for i in range(k):
        place = tl.argmax(z, axis=0)
        to = (row * parts + part) * k + i
        tl.store(values_ptr + to, tl.max(z, axis=0))
        tl.store(places_ptr + to, (part * chunk + place).to(tl.int64))
        z = tl.where(tl.arange(0, chunk) == place, float("-inf"), z)


@kernel
def _write(
    logits_ptr: Any,
    total_ptr: Any,
    drawn_ptr: Any,
    slope_ptr: Any,
    seeds_ptr: Any,
    variance_ptr: Any,
    tokens: Any,
    vocabulary: Any,
    stride_row: Any,
    stride_column: Any,
    slope_row: Any,
    slope_column: Any,
    has_slope: tl.constexpr,
    has_seeds: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
) -> None:
    group = tl.program_id(0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    live = columns < vocabulary
    variance = tl.zeros((width,), dtype=tl.float32)
    for i in range(rows):
        row = group * rows + i
        here = columns < tl.where(row < tokens, vocabulary, 0)
        at = row.to(tl.int64)
        wide = columns.to(tl.int64)
        z = tl.load(logits_ptr + at * stride_row + wide * stride_column, mask=here, other=0.0).to(tl.float32)
        p = tl.exp(z - tl.load(total_ptr + at, mask=row < tokens, other=0.0))
        spread = p * (1 - p)
        if has_slope:
            slope = tl.load(slope_ptr + at * slope_row + wide * slope_column, mask=here, other=0.0)
            spread = spread * slope * slope
        variance += tl.where(here, spread, 0.0)
        if has_seeds:
            drawn = tl.load(drawn_ptr + at, mask=row < tokens, other=-1)
            seed = p - (columns == drawn).to(tl.float32)
            if has_slope:
                seed = seed * slope
            tl.store(seeds_ptr + at * vocabulary + columns, seed.to(seeds_ptr.dtype.element_ty), mask=here)
    tl.store(variance_ptr + group.to(tl.int64) * vocabulary + columns, variance, mask=live)


Survey = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _surveyed(logits: torch.Tensor, k: int) -> Survey:
    """Of every chunk its largest logit and Σ exp(logit - largest), fp32 [tokens, chunks], and its k largest: values
    fp32 and places int64 [tokens, chunks · k]."""
    tokens, vocabulary = logits.shape
    count = triton.cdiv(vocabulary, CHUNK)
    largest = logits.new_empty(tokens, count, dtype=torch.float32)
    sums = torch.empty_like(largest)
    values = logits.new_empty(tokens, count * k, dtype=torch.float32)
    places = logits.new_empty(tokens, count * k, dtype=torch.int64)
    _survey[(tokens, count)](
        logits, largest, sums, values, places, vocabulary, logits.stride(0), logits.stride(1), k=k, chunk=CHUNK
    )
    return largest, sums, values, places


def _shares(largest: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of every row [tokens, 1], and what every chunk adds to Σ exp(logit - that)."""
    peak = largest.amax(1, keepdim=True)
    return peak, sums * torch.exp(largest - peak)


def _drawn(logits: torch.Tensor, peak: torch.Tensor, shares: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The chunk by its share, then the token within it [tokens, 1]; only that chunk is read again."""
    last = logits.shape[1] - 1
    cumulative = shares.cumsum(1)
    wanted = uniform * cumulative[:, -1:]
    chunk = torch.searchsorted(cumulative, wanted).clamp_max(shares.shape[1] - 1)
    places = chunk * CHUNK + torch.arange(CHUNK, device=logits.device)
    inside = logits.gather(1, places.clamp_max(last)).float()
    mass = torch.where(places <= last, torch.exp(inside - peak), 0.0).cumsum(1)
    within = torch.searchsorted(mass, wanted - (cumulative - shares).gather(1, chunk))
    # Two orders of summation may differ by a rounding at a chunk's end: then its last token that has any mass is meant.
    within = torch.minimum(within, torch.searchsorted(mass, mass[:, -1:].contiguous()))
    return (chunk * CHUNK + within).clamp_max(last)


def _written(
    logits: torch.Tensor,
    log_total: torch.Tensor,
    slope: torch.Tensor | None,
    drawn: torch.Tensor | None = None,
    seeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fills `seeds`, where wanted, and returns the variances, summed group by group in one order always."""
    tokens, vocabulary = logits.shape
    groups = triton.cdiv(tokens, ROWS)
    variance = logits.new_empty(groups, vocabulary, dtype=torch.float32)
    spread = None if slope is None else slope.to(logits.device).expand(tokens, vocabulary)
    _write[(groups, triton.cdiv(vocabulary, COLUMNS))](
        logits,
        log_total,
        logits if drawn is None else drawn,
        logits if spread is None else spread,
        logits if seeds is None else seeds,
        variance,
        tokens,
        vocabulary,
        logits.stride(0),
        logits.stride(1),
        0 if spread is None else spread.stride(0),
        0 if spread is None else spread.stride(1),
        has_slope=spread is not None,
        has_seeds=seeds is not None,
        rows=ROWS,
        width=COLUMNS,
    )
    return variance.sum(0)


def sampled(
    logits: torch.Tensor, uniform: torch.Tensor, slope: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kl_seeds.sampled`; a draw at the border of two tokens may fall on the other one."""
    largest, sums, _, _ = _surveyed(logits, 0)
    peak, shares = _shares(largest, sums)
    drawn = _drawn(logits, peak, shares, uniform)
    seeds = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    log_total = (peak + shares.sum(1, keepdim=True).log()).contiguous()
    return seeds, _written(logits, log_total, slope, drawn.contiguous(), seeds)


def variance(logits: torch.Tensor, slope: torch.Tensor | None) -> torch.Tensor:
    """As `kl_seeds.variance`."""
    peak, shares = _shares(*_surveyed(logits, 0)[:2])
    return _written(logits, (peak + shares.sum(1, keepdim=True).log()).contiguous(), slope)


def largest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest logits of every row, falling: fp32 and their places, int64 [tokens, k]."""
    _, _, values, places = _surveyed(logits, k)
    found, order = values.topk(k, dim=1)
    return found, places.gather(1, order)
