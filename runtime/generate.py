"""Generation: one token after another until the model ends its text or the room is used up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_svd.runtime.errors import InputError
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.session import DEFAULT_CHUNK, Session


def generate(
    session: Session,
    ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    chunk: int = DEFAULT_CHUNK,
    stop: Sequence[int] | None = None,
) -> Iterator[int]:
    """Append the prompt `ids` to the session and yield new token ids.

    Ends before a stop token (default: the manifest's eos ids), after `max_new_tokens`, or, where that is None, when the
    context is full. InputError before any work if prompt and new tokens do not fit the context.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"The number of new tokens must be at least 1, not {max_new_tokens}.")
    # The last new token is never fed back, so it needs no place in the cache.
    room = session.context - session.position - len(ids) + 1
    if room < 1 or (max_new_tokens is not None and max_new_tokens > room):
        wanted = max_new_tokens or 1
        raise InputError(
            f"The prompt of {session.position + len(ids)} tokens and {wanted} new ones do not fit the context of "
            f"{session.context} tokens; "
            "shorten them or use a longer --context (the model's limit is "
            f"{session.bundle.manifest.model.max_context})."
        )
    sampler = sampler or Sampler()
    ends = frozenset(session.bundle.manifest.decoder.eos_token_ids if stop is None else stop)
    return _tokens(session, ids, room if max_new_tokens is None else max_new_tokens, sampler, chunk, ends)


def _tokens(
    session: Session, ids: Sequence[int], count: int, sampler: Sampler, chunk: int, ends: frozenset[int]
) -> Iterator[int]:
    logits = session.prefill(ids, chunk=chunk)
    for left in range(count, 0, -1):
        token = sampler(logits)
        if token in ends:
            return
        yield token
        if left > 1:
            logits = session.step(token)
