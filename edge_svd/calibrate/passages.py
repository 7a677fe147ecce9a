"""From calibration sources to passages of token ids for an encoder: one a line, as a sentence model reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_svd.calibrate.sources import SELF, Source, documents
from edge_svd.calibrate.text import CalibrationText, shares
from edge_svd.encoders.pooling import PADDING
from edge_svd.errors import InputError

if TYPE_CHECKING:
    from edge_svd.encoders.opened import OpenedEncoder

Array = np.ndarray[Any, Any]

FEWEST = 16
"""Passages that calibration needs: some of them make the metrics, others check the predictions."""

CHARACTERS = 1 << 23
"""Of a source that are read: tokens are counted in all of them, and passages are chosen from them."""


@dataclass(frozen=True)
class PassageText(CalibrationText):
    """Passages int64 [count, length], PADDING behind their ends; `frequency` float64 [vocabulary]: each token's share
    of all text of the sources, not of the chosen passages alone."""

    frequency: Array


def passages_from(
    sources: Sequence[Source], opened: OpenedEncoder, *, longest: int, count: int, seed: int
) -> PassageText:
    """`count` passages, or as many as there are, of at most `longest` tokens with what the tokenizer puts around them.

    A passage is a line of a text file, a text of a .jsonl or data set. They are spread evenly over every source, whose
    share goes by weight. InputError on a source that is missing, empty or not UTF-8, or with too few passages.
    """
    limit = opened.architecture.max_position
    if longest < 4 or count < FEWEST:
        raise InputError(
            f"Calibration of an encoder needs at least {FEWEST} passages of four tokens, not {count} of {longest}."
        )
    if any(source.spec == SELF for source in sources):
        raise InputError(
            "A sentence encoder writes no text to calibrate on; name a text file with a passage a line, a .jsonl or "
            "hub:DATASET with --calibration."
        )
    backend = opened.tokenizer.backend_tokenizer
    counts = np.zeros(opened.architecture.vocab_size)
    parts: list[list[list[int]]] = []
    for source, part in zip(sources, shares([source.weight for source in sources], count), strict=True):
        found = _read(source, opened, backend, min(longest, limit))
        own = np.bincount(np.concatenate(found), minlength=len(counts)) if found else np.zeros(len(counts))
        counts += source.weight * own / max(own.sum(), 1)
        offset = np.random.default_rng(seed).random()
        chosen = min(part, len(found))
        parts.append([found[int((i + offset) * len(found) / chosen)] for i in range(chosen)])
    order = sorted(
        ((row + 0.5) / len(part), number, row) for number, part in enumerate(parts) for row in range(len(part))
    )
    if len(order) < FEWEST:
        raise InputError(f"The calibration text has {len(order)} passages, fewer than the {FEWEST} that are needed.")
    ids = np.full((len(order), max(len(parts[number][row]) for _, number, row in order)), PADDING, np.int64)
    for place, (_, number, row) in enumerate(order):
        ids[place, : len(parts[number][row])] = parts[number][row]
    frequency = counts / counts.sum()
    digest = hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i8").tobytes() + frequency.astype("<f8").tobytes())
    return PassageText(ids, digest.hexdigest(), tuple(number for _, number, _ in order), frequency)


def _read(source: Source, opened: OpenedEncoder, backend: Any, longest: int) -> list[list[int]]:
    """Every passage of a source, in its order."""
    lines: list[str] = []
    left = CHARACTERS
    for text, _ in documents(source, opened.tokenizer, CHARACTERS):
        for line in text.splitlines():
            if line.strip() and left > 0:
                lines.append(line.strip())
                left -= len(line)
    backend.no_padding()
    backend.enable_truncation(longest)
    try:
        return [list(found.ids) for found in backend.encode_batch(lines, add_special_tokens=True)]
    finally:
        backend.no_truncation()
