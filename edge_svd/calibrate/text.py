"""From calibration sources to windows of token ids: every source its share, all of equal length, no padding, no BOS."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_svd.calibrate.sources import SELF, Source, documents, parse_source
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json

if TYPE_CHECKING:
    from edge_svd.models import OpenedModel

__all__ = ["CalibrationText", "Source", "parse_source", "shares", "windows_from"]

_CHARACTERS = 16
"""Characters tokenised per token asked for: enough windows to choose from, without tokenising a gigabyte to use a
page of it.
"""

_PIECE = 2**16

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class CalibrationText:
    """Windows of tokens, int64 [count, window]; the sha256 of all ids; for each window the number of its source."""

    ids: Ids
    source_digest: str
    source_of_window: tuple[int, ...]


def windows_from(
    sources: Sequence[Source],
    opened: OpenedModel,
    *,
    window: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> CalibrationText:
    """Exactly `count` windows of `window` tokens, the sources interleaved by weight; deterministic.

    `progress(done, total)` counts tokens. Text that the model writes itself is kept in the folder `cache`, if one
    is given. InputError on a source that is missing, empty, not UTF-8, shorter than one window, or too short for
    its share.
    """
    if window < 2 or count < 1:
        raise InputError(f"Calibration needs at least one window of two tokens, not {count} of {window}.")
    if not sources:
        raise InputError("Calibration needs at least one source; give a file, hub:DATASET or self.")
    if window > opened.architecture.max_position:
        limit = opened.architecture.max_position
        raise InputError(f"A calibration window of {window} tokens is longer than the model's context of {limit}.")
    counts = shares([source.weight for source in sources], count)
    parts: list[Ids] = []
    for number, (source, part) in enumerate(zip(sources, counts, strict=True)):
        if part == 0:
            parts.append(np.empty((0, window), np.int64))
        elif source.spec == SELF:
            parts.append(_written(opened, window, part, seed + number, progress, cache))
        else:
            parts.append(_cut(_stream(source, opened, window * part, seed), source, window, part, seed))
    order = sorted(((row + 0.5) / n, number, row) for number, n in enumerate(counts) for row in range(n))
    ids = np.stack([parts[number][row] for _, number, row in order])
    digest = hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i8").tobytes()).hexdigest()
    if progress:
        progress(ids.size, ids.size)
    return CalibrationText(ids, digest, tuple(number for _, number, _ in order))


def shares(weights: Sequence[float], count: int) -> list[int]:
    """`count` split in proportion to the weights by largest remainder; of equal remainders the earlier source wins."""
    largest = max(weights)
    scaled = [weight / largest for weight in weights]
    quotas = [weight * count / sum(scaled) for weight in scaled]
    result = [int(quota) for quota in quotas]
    ranking = sorted(range(len(weights)), key=lambda number: (result[number] - quotas[number], number))
    for number in ranking[: count - sum(result)]:
        result[number] += 1
    return result


def _stream(source: Source, opened: OpenedModel, wanted: int, seed: int) -> Ids:
    """Token ids of a source, long texts thinned evenly; plain documents are separated by the end token."""
    limit = _CHARACTERS * wanted
    texts = documents(source, opened.tokenizer, limit)
    pieces = [(piece, last and not templated) for text, templated in texts for piece, last in _pieces(text)]
    total = sum(len(piece) for piece, _ in pieces)
    if total > limit:
        keep = max(1, -(-len(pieces) * limit // total))
        offset = np.random.default_rng(seed).random()
        pieces = [pieces[int((i + offset) * len(pieces) / keep)] for i in range(keep)]
    separator = list(opened.architecture.eos_token_ids[:1]) if len(texts) > 1 else []
    backend = opened.tokenizer.backend_tokenizer  # transformers' own call would warn of texts longer than the context
    encoded = [
        backend.encode(piece, add_special_tokens=False).ids + (separator if ends else []) for piece, ends in pieces
    ]
    return np.fromiter((token for ids in encoded for token in ids), np.int64)


def _pieces(text: str) -> list[tuple[str, bool]]:
    """A text cut behind line ends into pieces of about 64k characters, each with whether it is the last."""
    pieces, start = [], 0
    while start < len(text):
        cut = text.find("\n", start + _PIECE) + 1
        end = min(cut or len(text), start + 2 * _PIECE)
        pieces.append(text[start:end])
        start = end
    return [(piece, number + 1 == len(pieces)) for number, piece in enumerate(pieces)]


def _cut(ids: Ids, source: Source, window: int, count: int, seed: int) -> Ids:
    """`count` windows that do not overlap, spread evenly over the ids; the seed shifts all of them alike."""
    if len(ids) < window:
        raise InputError(
            f"The calibration source {source.spec} has {len(ids)} tokens, fewer than one window of {window}."
        )
    available = len(ids) // window
    if available < count:
        raise InputError(
            f"The calibration source {source.spec} holds {available} windows of {window} tokens and {count} are "
            f"asked for; "
            "lower --calibration-windows or add a source."
        )
    offset = np.random.default_rng(seed).random()
    starts = [int((number + offset) * available / count) * window for number in range(count)]
    return np.stack([ids[start : start + window] for start in starts])


def _written(
    opened: OpenedModel,
    window: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
    cache: Path | None,
) -> Ids:
    """Text by the model itself, from the cache where it has been written before."""
    from edge_svd.calibrate import generate

    key = {
        "model": opened.digest,
        "tokenizer": opened.tokenizer_digest,
        "shape": [count, window],
        "seed": seed,
        "writer": generate.writer_key(),
    }
    file = cache / f"{hashlib.sha256(canonical_json(key)).hexdigest()}.npy" if cache else None
    if file and file.is_file():
        try:
            found = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            found = np.empty(0)
        if (
            found.shape == (count, window)
            and found.dtype == np.int64
            and 0 <= found.min()
            and found.max() < opened.architecture.vocab_size
        ):
            return found
    ids = generate.write_windows(
        opened.model, opened.tokenizer, opened.architecture, window=window, count=count, seed=seed, progress=progress
    )
    if file:
        buffer = io.BytesIO()
        np.save(buffer, ids, allow_pickle=False)
        atomic_write(file, buffer.getvalue())
    return ids
