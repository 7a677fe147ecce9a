"""edge_svd.json, the manifest of a bundle, checked field by field because nobody vouches for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_svd.runtime import strict_json
from edge_svd.runtime.errors import BundleError, Failure, InputError
from edge_svd.runtime.strict_json import JsonError

SCHEMA = 1
MANIFEST_NAME = "edge_svd.json"
MEASUREMENTS_NAME = "measurements.json"
MEASUREMENTS_BYTES = 4096
"""measurements.json always has this size, so that measuring a bundle does not change the size that was promised."""
MODEL_NAME = "model.onnx"
SCORING_NAME = "model_scoring.onnx"
WEIGHTS_NAME = "model.onnx.data"
TOKENIZER_NAME = "tokenizer.json"
REQUIRED_FILES = (MODEL_NAME, SCORING_NAME, WEIGHTS_NAME, TOKENIZER_NAME)
"""Of a decoder; an encoder has no scoring graph."""

ENCODER = "encoder"
POOLINGS = ("mean", "cls")
MAX_MANIFEST_BYTES = 16_000_000

EMBEDDED = "inputs_embeds"
"""The graph's value of the first hidden state, which our runtime computes itself where it can."""

COLUMNS = "logit_columns"
"""The graph's value of the columns whose logits are wanted, int64 [batch, columns, 1]."""

LAST_KEY, KEYS, PLACES, PADDING = "last_key", "keys", "rotary_places", "padding_bias"
"""The graph's values that every attention reads: int32 [batch] and int32 [1], the last key and how many there are;
int64 [batch, sequence], how far tokens are rotated; and float32 [batch, 1, sequence, keys], what masks padding."""

KV_DTYPES = {"float32": "tensor(float)", "int8": "tensor(int8)"}
"""What a KV cache may hold: numpy's name → onnxruntime's."""

_MAX_INT = 2**63 - 1
# One plain name in one flat folder: no separators of any system, no NUL, no leading dot, no trailing dot (Windows drops
# it).
_FILE_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{1,128}")


@dataclass(frozen=True)
class Source:
    """Where the model came from: its name and the hex digest of its files."""

    model: str
    digest: str


@dataclass(frozen=True)
class ModelInfo:
    """What the runtime must know of the model.

    Cache shape per layer is [batch, num_kv_heads, tokens, head_dim] of kv_dtype.
    """

    family: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: str
    max_context: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class EncoderInfo:
    """The same of a sentence encoder: texts of up to max_context tokens become vectors [hidden_size] of length one."""

    family: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    max_context: int
    pooling: str
    pad_token_id: int
    kind: str = ENCODER


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder: exact size and lower-case hex sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The checked content of edge_svd.json."""

    edge_svd: str
    source: Source
    model: ModelInfo | EncoderInfo
    plan: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    schema: int = SCHEMA

    @property
    def decoder(self) -> ModelInfo:
        """What the runtime must know of a model that writes text; InputError if this one only embeds it."""
        if isinstance(self.model, EncoderInfo):
            raise InputError(
                f"The bundle of {self.source.model} is a sentence encoder, which embeds text and writes none; use "
                "edge_svd.runtime.Embedder, `edge-svd run` for the embedding of one text, or `edge-svd eval` with "
                "--reference."
            )
        return self.model

    @property
    def encoder(self) -> EncoderInfo:
        """What it must know of a sentence encoder; InputError if this is a model that writes text."""
        if isinstance(self.model, ModelInfo):
            raise InputError(
                f"The bundle of {self.source.model} is a decoder, which has no sentence embedding; use `edge-svd run`."
            )
        return self.model

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, all of which read the one weights file."""
        return (MODEL_NAME,) if isinstance(self.model, EncoderInfo) else (MODEL_NAME, SCORING_NAME)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse and check; BundleError with one sentence on anything that is not exactly a manifest of this version."""
        try:
            value = strict_json.parse(data, max_bytes=MAX_MANIFEST_BYTES)
        except JsonError as error:
            raise BundleError(
                f"The manifest {MANIFEST_NAME} {error}; make the bundle again or copy it again."
            ) from None
        if not isinstance(value, dict):
            raise _wrong("the manifest itself", "an object", value)
        version = value.get("schema")
        if type(version) is not int:
            raise _wrong("schema", "an integer", version)
        if not -_MAX_INT <= version <= _MAX_INT:
            raise _wrong("schema", "an integer", version)
        if version > SCHEMA:
            raise BundleError(
                f"The bundle was written for a newer version of edge-svd (schema {version}, this one reads "
                f"{SCHEMA}); upgrade edge-svd."
            )
        if version != SCHEMA:
            raise BundleError(
                f"The manifest has the unknown schema {version}; this edge-svd reads {SCHEMA}, so export the bundle "
                "again."
            )
        _fields(value, "the manifest", ("schema", "edge_svd", "source", "model", "plan", "files"))
        source = _object(value["source"], "source", ("model", "digest"))
        digest = _text(source["digest"], "source.digest")
        if not _HEX.fullmatch(digest):
            raise _wrong("source.digest", "a hexadecimal digest", digest)
        if not isinstance(value["plan"], dict):
            raise _wrong("plan", "an object", value["plan"])
        model = _model(value["model"])
        return cls(
            edge_svd=_text(value["edge_svd"], "edge_svd"),
            source=Source(_text(source["model"], "source.model"), digest),
            model=model,
            plan=value["plan"],
            files=_files(value["files"], isinstance(model, EncoderInfo)),
        )

    def to_bytes(self) -> bytes:
        """Deterministic JSON; checked by reading it back, so that nothing is written that the loader would refuse."""
        model = dict(vars(self.model))
        if isinstance(self.model, ModelInfo):
            model["eos_token_ids"] = list(self.model.eos_token_ids)
        value = {
            "schema": self.schema,
            "edge_svd": self.edge_svd,
            "source": dict(vars(self.source)),
            "model": model,
            "plan": dict(self.plan),
            "files": {name: dict(vars(entry)) for name, entry in self.files.items()},
        }
        try:
            strict_json.check(value)
        except JsonError as error:
            raise BundleError(f"The manifest {error}.") from None
        data = strict_json.dump(value)
        Manifest.from_bytes(data)
        return data


def pack_measurements(measurements: Mapping[str, Any]) -> bytes:
    """A JSON object padded with spaces to exactly 4,096 bytes; Failure if it does not fit or is not JSON."""
    try:
        strict_json.check(dict(measurements))
    except JsonError as error:
        raise Failure(f"The measurements cannot be written: the value {error}.") from None
    data = strict_json.dump(dict(measurements))
    if len(data) > MEASUREMENTS_BYTES:
        raise Failure(
            f"The measurements take {len(data)} bytes, more than the {MEASUREMENTS_BYTES} that {MEASUREMENTS_NAME} has."
        )
    return data.ljust(MEASUREMENTS_BYTES)


def unpack_measurements(data: bytes) -> dict[str, Any]:
    """The object in measurements.json; BundleError if it is not exactly 4,096 bytes holding a JSON object."""
    if len(data) != MEASUREMENTS_BYTES:
        raise BundleError(
            f"{MEASUREMENTS_NAME} has {len(data)} bytes instead of {MEASUREMENTS_BYTES}; measure the bundle again."
        )
    try:
        value = strict_json.parse(data, max_bytes=MEASUREMENTS_BYTES)
    except JsonError as error:
        raise BundleError(f"{MEASUREMENTS_NAME} {error}; measure the bundle again.") from None
    if not isinstance(value, dict):
        raise BundleError(f"{MEASUREMENTS_NAME} holds no object; measure the bundle again.")
    return value


def _model(value: Any) -> ModelInfo | EncoderInfo:
    if isinstance(value, dict) and "kind" in value:
        return _encoder(value)
    value = _object(value, "model", tuple(ModelInfo.__dataclass_fields__))
    vocabulary = _integer(value["vocab_size"], "model.vocab_size", 1, 2**31)
    bos = value["bos_token_id"]
    eos = value["eos_token_ids"]
    if not isinstance(eos, list):
        raise _wrong("model.eos_token_ids", "a list", eos)
    if value["kv_dtype"] not in tuple(KV_DTYPES):  # which a list or an object may be asked of
        raise _wrong("model.kv_dtype", " or ".join(f'"{name}"' for name in KV_DTYPES), value["kv_dtype"])
    return ModelInfo(
        family=_text(value["family"], "model.family"),
        vocab_size=vocabulary,
        num_layers=_integer(value["num_layers"], "model.num_layers", 1, 10_000),
        num_kv_heads=_integer(value["num_kv_heads"], "model.num_kv_heads", 1, 10_000),
        head_dim=_integer(value["head_dim"], "model.head_dim", 1, 10_000),
        kv_dtype=value["kv_dtype"],
        max_context=_integer(value["max_context"], "model.max_context", 1, 2**27),
        bos_token_id=None if bos is None else _integer(bos, "model.bos_token_id", 0, vocabulary - 1),
        eos_token_ids=tuple(_integer(item, "model.eos_token_ids", 0, vocabulary - 1) for item in eos),
    )


def _encoder(value: Any) -> EncoderInfo:
    value = _object(value, "model", tuple(EncoderInfo.__dataclass_fields__))
    if value["kind"] != ENCODER:
        raise _wrong("model.kind", f'"{ENCODER}"', value["kind"])
    if value["pooling"] not in POOLINGS:
        raise _wrong("model.pooling", " or ".join(f'"{name}"' for name in POOLINGS), value["pooling"])
    vocabulary = _integer(value["vocab_size"], "model.vocab_size", 1, 2**31)
    return EncoderInfo(
        family=_text(value["family"], "model.family"),
        vocab_size=vocabulary,
        num_layers=_integer(value["num_layers"], "model.num_layers", 1, 10_000),
        hidden_size=_integer(value["hidden_size"], "model.hidden_size", 1, 1_000_000),
        max_context=_integer(value["max_context"], "model.max_context", 1, 2**27),
        pooling=value["pooling"],
        pad_token_id=_integer(value["pad_token_id"], "model.pad_token_id", 0, vocabulary - 1),
    )


def _files(value: Any, encoder: bool) -> dict[str, FileEntry]:
    if not isinstance(value, dict):
        raise _wrong("files", "an object", value)
    folded: dict[str, str] = {}
    result = {}
    for name, entry in value.items():
        if not _FILE_NAME.fullmatch(name):
            raise BundleError(
                f"The manifest names the file {name[:80]!r}, which is not a plain file name inside the bundle; do "
                "not use this bundle."
            )
        lower = name.lower()
        if lower in (MANIFEST_NAME, MEASUREMENTS_NAME):
            raise BundleError(f"The manifest lists {name}, which it must not list; export the bundle again.")
        if lower in folded:
            raise BundleError(
                f"The manifest names {folded[lower]} and {name}, which are one file on some systems; export the "
                "bundle again."
            )
        folded[lower] = name
        entry = _object(entry, f"files[{name!r}]", ("bytes", "sha256"))
        digest = entry["sha256"]
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise _wrong(f"files[{name!r}].sha256", "64 lower-case hexadecimal digits", digest)
        result[name] = FileEntry(_integer(entry["bytes"], f"files[{name!r}].bytes", 0, _MAX_INT), digest)
    for name in (name for name in REQUIRED_FILES if not (encoder and name == SCORING_NAME)):
        if name not in result:
            raise BundleError(f"The manifest does not list {name}, which every bundle has; export the bundle again.")
    return result


def _object(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    _fields(value, where, names)
    return value


def _fields(value: dict[str, Any], where: str, names: tuple[str, ...]) -> None:
    missing = sorted(set(names) - set(value))
    if missing:
        raise BundleError(f"In {MANIFEST_NAME}, {where} lacks the field {missing[0]!r}; export the bundle again.")
    extra = sorted(set(value) - set(names))
    if extra:
        raise BundleError(
            f"In {MANIFEST_NAME}, {where} has the unknown field {extra[0][:80]!r}; export the bundle again."
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096 or "\0" in value:
        raise _wrong(where, "a non-empty text", value)
    return value


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _wrong(where, f"an integer from {low} to {high}", value)
    return value


def _wrong(where: str, wanted: str, value: Any) -> BundleError:
    shown = repr(value) if isinstance(value, (str, float, bool, type(None))) else type(value).__name__
    if type(value) is int:
        shown = str(value) if abs(value) <= _MAX_INT else "a huge integer"
    return BundleError(f"In {MANIFEST_NAME}, {where} must be {wanted}, not {shown[:80]}; export the bundle again.")
