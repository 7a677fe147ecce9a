"""Generation: one token after another until the model ends its text or the room is used up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_svd.runtime.errors import InputError
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.session import DEFAULT_CHUNK, SINKS, Session


def generate(
    session: Session,
    ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    chunk: int = DEFAULT_CHUNK,
    stop: Sequence[int] | None = None,
    first: int = SINKS,
) -> Iterator[int]:
    """Append the prompt `ids` to the session and yield new token ids.

    Ends before a stop token (default: the manifest's eos ids), after `max_new_tokens`, or, where that is None, when the
    context is full. More new tokens than the context has room for are made all the same: older ones are forgotten then
    (`Session.slide`, which keeps the `first` ones). InputError before any work if the prompt does not fit the context.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"The number of new tokens must be at least 1, not {max_new_tokens}.")
    # The last new token is never fed back, so it needs no place in the cache.
    room = session.context - session.position - len(ids) + 1
    if room < 1:
        raise InputError(
            f"The prompt of {session.position + len(ids)} tokens does not fit the context of {session.context} tokens; "
            "shorten it or use a longer --context (the model's limit is "
            f"{session.bundle.manifest.model.max_context})."
        )
    sampler = sampler or Sampler()
    ends = frozenset(session.bundle.manifest.decoder.eos_token_ids if stop is None else stop)
    return _tokens(session, ids, room if max_new_tokens is None else max_new_tokens, sampler, chunk, ends, first)


def _tokens(
    session: Session, ids: Sequence[int], count: int, sampler: Sampler, chunk: int, ends: frozenset[int], first: int
) -> Iterator[int]:
    logits = session.prefill(ids, chunk=chunk)
    for left in range(count, 0, -1):
        token = sampler(logits)
        if token in ends:
            return
        yield token
        if left > 1:
            if session.position == session.context:
                session.slide(first=first, chunk=chunk)
            logits = session.step(token)
