"""What the command line and other programs call: run, chat, eval, tasks, inspect.

`verify` is in bundle, `bench` in bench.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_svd.runtime.bundle import Bundle, is_bundle, open_bundle, read_measurements
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.embed import Embedder
from edge_svd.runtime.errors import BundleError, InputError
from edge_svd.runtime.generate import generate
from edge_svd.runtime.prefix_scorer import PrefixScorer
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.schema import EncoderInfo
from edge_svd.runtime.score import OnWindow, Score, perplexity
from edge_svd.runtime.session import DEFAULT_CHUNK, SINKS, Session
from edge_svd.runtime.task_file import read_items, strided
from edge_svd.runtime.task_score import TaskScore, score_tasks
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import load_tokenizer


def run(
    bundle: Bundle | Path | str,
    prompt: str,
    *,
    max_new_tokens: int | None = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    context: int | None = None,
    threads: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    lookup: bool = True,
    template: bool = False,
    special_tokens: bool = True,
) -> Iterator[str]:
    """Continue a prompt; yields pieces of text as they come.

    With `lookup`, what repeats is guessed (`Session`). `template` treats the prompt as a user's question in the model's
    chat template; otherwise `special_tokens` puts what the model's tokenizer asks for (BOS) before it. Arguments and
    bundle are checked, and the model is loaded, before this returns.
    """
    sampler = Sampler(temperature, top_p, seed)
    opened = _opened(bundle)
    _ = opened.manifest.decoder  # refuses an encoder before anything is loaded
    tokenizer = load_tokenizer(opened)
    if template:
        text = ChatTemplate.from_bundle(opened).render([{"role": "user", "content": prompt}])
        ids = tokenizer.encode(text)
    else:
        ids = tokenizer.encode(prompt, special_tokens=special_tokens)
    if not ids:
        raise InputError("The prompt is empty; give some text.")
    session = Session(opened, context=context, threads=threads, lookup=lookup)
    return tokenizer.stream(generate(session, ids, max_new_tokens=max_new_tokens, sampler=sampler, chunk=chunk))


class Conversation:
    """A chat that keeps its KV cache: only what is new since the last turn is computed.

    It may grow without end. Once the turns no longer fit three quarters of the context, the oldest ones are left out of
    what the model sees, until half of it is free; the system's message stays. An answer that outgrows what is left
    pushes out the oldest tokens (`Session.slide`).
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        context: int | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
        lookup: bool = True,
    ) -> None:
        """Load the model; InputError if it has no chat template."""
        self._sampler = Sampler(temperature, top_p, seed)
        opened = _opened(bundle)
        _ = opened.manifest.decoder
        self._tokenizer = load_tokenizer(opened)
        self._template = ChatTemplate.from_bundle(opened)
        self._session = Session(opened, context=context, threads=threads, lookup=lookup)
        self._chunk = chunk
        self._start = 0  # of the turns that the model still sees
        self.messages: list[Mapping[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._system = len(self.messages)
        self._first = self._common()

    def reply(self, message: str, *, max_new_tokens: int | None = None) -> Iterator[str]:
        """Yield the answer in pieces and remember both sides, also when the caller stops reading early.

        An answer ends after `max_new_tokens`, without them after as many tokens as the context holds. InputError, with
        nothing remembered, if the message alone does not fit the context.
        """
        session = self._session
        messages = [*self.messages, {"role": "user", "content": message}]
        ids, start = self._seen(messages)
        if not ids:
            raise InputError("The chat template gives an empty prompt for this message.")
        if len(ids) > session.context:
            raise InputError(
                f"The message makes a prompt of {len(ids)} tokens, which does not fit the context of {session.context} "
                f"tokens; shorten it or use a longer --context (the model's limit is "
                f"{session.bundle.manifest.model.max_context})."
            )
        # At least the last token is computed again: its logits are not kept.
        common = 0
        for old, new in zip(session.tokens, ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        session.truncate(common)
        self._start = start
        tokens = generate(
            session,
            ids[common:],
            max_new_tokens=max_new_tokens or session.context,
            sampler=self._sampler,
            chunk=self._chunk,
            first=self._first,
        )
        return self._pieces(messages, tokens)

    def _common(self) -> int:
        """Tokens that every conversation begins with: what template and system message put before a question."""
        one, other = ([*self.messages, {"role": "user", "content": text}] for text in ("a", "b"))
        pairs = zip(
            *(self._tokenizer.encode(self._template.render(messages)) for messages in (one, other)), strict=False
        )
        return max(SINKS, next((at for at, (left, right) in enumerate(pairs) if left != right), 0))

    def _seen(self, messages: list[Mapping[str, Any]]) -> tuple[list[int], int]:
        """The prompt of what the model shall see, and which message that begins with."""

        def prompt(start: int) -> list[int]:
            system = messages[: self._system]
            return self._tokenizer.encode(self._template.render([*system, *messages[max(start, self._system) :]]))

        start, limit = self._start, 3 * self._session.context // 4
        ids = prompt(start)
        while len(ids) > limit:
            limit = self._session.context // 2  # with some left over for the turns to come
            # A question and its answer go together: templates want them in turns.
            later = next((i for i in range(max(start, self._system) + 2, len(messages), 2)), None)
            if later is None:
                break
            start, ids = later, prompt(later)
        return ids, start

    def _pieces(self, messages: list[Mapping[str, Any]], tokens: Iterator[int]) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in self._tokenizer.stream(tokens):
                said.append(piece)
                yield piece
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]


def is_encoder(bundle: Path | str) -> bool:
    """Whether the folder is the bundle of a sentence encoder; False for everything else, damaged bundles included."""
    if not is_bundle(bundle):
        return False
    try:
        return isinstance(open_bundle(bundle, check_digests=False).manifest.model, EncoderInfo)
    except BundleError:
        return False  # what is wrong with it is said where it is used


def embed(bundle: Bundle | Path | str, text: str, *, threads: int | None = None) -> list[float]:
    """The embedding of one text, of length one; InputError if the bundle is no sentence encoder."""
    embedder = Embedder(bundle, threads=threads)
    return [float(value) for value in embedder.embed([text])[0]]


def evaluate(
    bundle: Bundle | Path | str,
    text: Path | str,
    *,
    window: int = 512,
    windows: int = 64,
    batch: int = 1,
    threads: int | None = None,
    on_window: OnWindow | None = None,
) -> Score:
    """Perplexity of a bundle on a text file (`.gz` too); see `score.perplexity`."""
    content = read_text(text)
    opened = _opened(bundle)
    _ = opened.manifest.decoder
    ids = load_tokenizer(opened).encode(content)
    return perplexity(opened, ids, window=window, windows=windows, batch=batch, threads=threads, on_window=on_window)


def evaluate_tasks(
    bundle: Bundle | Path | str,
    data: Path | str,
    *,
    limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskScore:
    """Accuracy of a bundle on a file of multiple-choice items, or on `limit` of them evenly spread over it.

    See `task_file.read_items` for the file and `task_score.score_tasks` for the numbers; `progress(done, items)` is
    called behind every item.
    """
    opened = _opened(bundle)
    _ = opened.manifest.decoder
    items = strided(read_items(data), limit)
    return score_tasks(PrefixScorer(opened, threads=threads), items, progress=lambda done: progress(done, len(items)))


def inspect(bundle: Bundle | Path | str) -> dict[str, Any]:
    """What is in a bundle: its manifest as JSON, and "file_bytes" and "measurements" beside it."""
    opened = _opened(bundle)
    content: dict[str, Any] = json.loads(opened.manifest.to_bytes())
    return content | {"file_bytes": opened.file_bytes, "measurements": read_measurements(opened.path)}


def _opened(bundle: Bundle | Path | str) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
