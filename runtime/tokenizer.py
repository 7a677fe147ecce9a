"""Text to ids and back, one token at a time without ever showing half a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tokenizers

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.errors import BundleError, InputError
from edge_svd.runtime.memory import release_free_memory
from edge_svd.runtime.schema import TOKENIZER_NAME

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes; more undecided tokens than this are invalid bytes that will never make one.
_MAX_PENDING = 32


class Tokenizer:
    """A thin layer over the tokenizers library; ids are plain ints."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """From the content of tokenizer.json; BundleError if the library refuses it."""
        try:
            return cls(tokenizers.Tokenizer.from_buffer(data))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic is no Exception
            raise BundleError(
                f"{TOKENIZER_NAME} cannot be read ({str(error)[:200]}); export the bundle again."
            ) from None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of a text; `special_tokens` adds what the tokenizer puts around a text (BOS and the like)."""
        _check_unicode(text)
        return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)

    def encode_all(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Ids of several texts with what the tokenizer puts around each, cut so that none has more than `longest`."""
        for text in texts:
            _check_unicode(text)
        self._backend.enable_truncation(longest)
        try:
            return [list(found.ids) for found in self._backend.encode_batch(list(texts), add_special_tokens=True)]
        finally:
            self._backend.no_truncation()

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def id_of(self, token: str) -> int | None:
        """The id of one token's text, None if there is no such token."""
        value: Any = self._backend.token_to_id(token)
        return None if value is None else int(value)

    def stream(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> Iterator[str]:
        """Pieces of text as ids arrive; their concatenation is the decoded whole."""
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        for token in ids:
            piece = decoder.push(token)
            if piece:
                yield piece
        rest = decoder.flush()
        if rest:
            yield rest


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            "The text holds half a surrogate pair, which no tokenizer can read; give valid Unicode."
        ) from None


class StreamDecoder:
    """Incremental decoding.

    Tokens already shown stay as context, because decoders treat the first token of a text differently.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context: list[int] = []
        self._pending: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that became certain with this token, perhaps none."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        # What follows an unfinished character can still change; everything before it cannot.
        certain = text if len(self._pending) >= _MAX_PENDING else text.rstrip(_UNKNOWN)
        piece = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        if piece and len(certain) == len(text):
            self._context, self._pending = self._pending, []
            self._shown = len(self._decode(self._context))
        return piece

    def flush(self) -> str:
        """What is left at the end of the text, unfinished characters included."""
        piece = self._decode(self._context + self._pending)[self._shown :]
        self._shown += len(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer; BundleError if it is damaged or has more ids than the model has embeddings."""
    tokenizer = Tokenizer.from_bytes(bundle.read(TOKENIZER_NAME))
    # Parsing leaves half as much again behind as the tokenizer keeps: 16 MB for 49,152 tokens.
    release_free_memory()
    vocabulary = bundle.manifest.model.vocab_size
    if not 0 < tokenizer.vocab_size <= vocabulary:
        raise BundleError(
            f"The tokenizer in the bundle {bundle.path} has {tokenizer.vocab_size} tokens and the model "
            f"{vocabulary}; they do not belong together."
        )
    return tokenizer
