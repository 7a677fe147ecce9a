from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.runtime.errors import BundleError, Failure
from edge_svd.runtime.schema import Manifest, pack_measurements, unpack_measurements

ENTRY = {"bytes": 3, "sha256": "0" * 64}
VALID: dict[str, Any] = {
    "schema": 1,
    "edge_svd": "0.1.0",
    "source": {"model": "some/model", "digest": "ab" * 32},
    "model": {
        "family": "llama",
        "vocab_size": 100,
        "num_layers": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "kv_dtype": "float32",
        "max_context": 64,
        "bos_token_id": None,
        "eos_token_ids": [2, 3],
    },
    "plan": {"b": [1, 2.5, None, "ü"], "a": {}},
    "files": {
        name: ENTRY for name in ("model.onnx", "model_scoring.onnx", "model.onnx.data", "tokenizer.json", "LICENSE")
    },
}


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = copy.deepcopy(VALID)
    change(value)
    return json.dumps(value).encode()


def refused(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        Manifest.from_bytes(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_round_trip_is_deterministic() -> None:
    manifest = Manifest.from_bytes(json.dumps(VALID, indent=3).encode())
    assert manifest.model.eos_token_ids == (2, 3)
    assert manifest.plan == VALID["plan"]
    assert json.loads(manifest.to_bytes()) == VALID
    backwards = dict(reversed(VALID.items()))
    assert Manifest.from_bytes(json.dumps(backwards).encode()).to_bytes() == manifest.to_bytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON"),
        (b"[]", "an object"),
        (b"3", "an object"),
        (b"\xff{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"schema":1,"schema":1}', "'schema' twice"),
        (changed(lambda v: None).replace(b'"a": {}', b'"a": {"x":1,"x":2}'), "'x' twice"),
        (changed(lambda v: None).replace(b"2.5", b"NaN"), "NaN"),
        (changed(lambda v: None).replace(b"2.5", b"-Infinity"), "Infinity"),
        (changed(lambda v: None).replace(b"2.5", b"1e400"), "not finite"),
        (changed(lambda v: None).replace(b"2.5", b"9" * 6000), "is not JSON"),
        (changed(lambda v: None).replace(b"2.5", b'"\\ud800"'), "surrogate"),
        (changed(lambda v: None).replace(b"2.5", b"[" * 100_000 + b"]" * 100_000), "nested"),
        (b'{"a":' * 100_000, "nested"),
        (changed(lambda v: None).replace(b"2.5", b"[" * 70 + b"]" * 70), "nested more than"),
        (b" " * 16_000_001, "larger than"),
        (changed(lambda v: None)[:-1], "is not JSON"),
        (changed(lambda v: None) + b"x", "is not JSON"),
    ],
)
def test_malformed_bytes(data: bytes, words: str) -> None:
    refused(data, words)


@pytest.mark.parametrize("version", [2, 10**12])
def test_newer_schema_says_what_to_do(version: int) -> None:
    refused(changed(lambda v: v.update(schema=version)), "newer version of edge-svd.*upgrade")


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None, 10**4000, -(10**4000)])
def test_unknown_schema(version: object) -> None:
    refused(changed(lambda v: v.update(schema=version)), "schema")


def every_field() -> list[tuple[str, ...]]:
    paths = [(key,) for key in VALID]
    paths += [(section, key) for section in ("source", "model") for key in VALID[section]]
    return [*paths, ("files", "LICENSE", "bytes"), ("files", "LICENSE", "sha256")]


def parent(value: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        value = value[key]
    return value


@pytest.mark.parametrize("path", every_field())
def test_missing_field(path: tuple[str, ...]) -> None:
    refused(changed(lambda v: parent(v, path).pop(path[-1])), path[-1])


@pytest.mark.parametrize("path", every_field())
@pytest.mark.parametrize("wrong", [None, True, -1, 1.5, "", [], [[]], 2**70])
def test_wrong_type(path: tuple[str, ...], wrong: object) -> None:
    if path[-1] == "bos_token_id" and wrong is None or path[-1] == "eos_token_ids" and wrong == []:
        return
    refused(changed(lambda v: parent(v, path).update({path[-1]: wrong})), path[-1])


@pytest.mark.parametrize("path", [(), ("source",), ("model",), ("files", "LICENSE")])
def test_extra_field(path: tuple[str, ...]) -> None:
    refused(changed(lambda v: parent(v, (*path, "")).update(surprise=1)), "unknown field 'surprise'")


@pytest.mark.parametrize(
    "name",
    [
        "../x", "a/../../b", "/etc/passwd", "a/b", "a\\b", "a\0b", "", ".", "..", ".hidden", "C:x", "a.", "a b",
        "é", "x" * 200,
        "*/_ORT_MEM_ADDR_/*", "a\n",
    ],
)  # fmt: skip
def test_file_names_that_leave_the_folder(name: str) -> None:
    refused(changed(lambda v: v["files"].update({name: ENTRY})), "not a plain file name")


@pytest.mark.parametrize("name", ["edge_svd.json", "measurements.json", "Edge_SVD.json"])
def test_reserved_file_names(name: str) -> None:
    refused(changed(lambda v: v["files"].update({name: ENTRY})), "must not list")


def test_case_collision() -> None:
    refused(changed(lambda v: v["files"].update({"License": ENTRY})), "LICENSE and License")


@pytest.mark.parametrize("name", ["model.onnx", "model_scoring.onnx", "model.onnx.data", "tokenizer.json"])
def test_required_files(name: str) -> None:
    refused(changed(lambda v: v["files"].pop(name)), f"does not list {name}")


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 63 + "\n"])
def test_digests(digest: str) -> None:
    refused(changed(lambda v: v["files"]["LICENSE"].update(sha256=digest)), "sha256")


@pytest.mark.parametrize("token", [-1, 100, 2**70])
def test_tokens_outside_the_vocabulary(token: int) -> None:
    refused(changed(lambda v: v["model"].update(eos_token_ids=[token])), "eos_token_ids")
    refused(changed(lambda v: v["model"].update(bos_token_id=token)), "bos_token_id")


def test_to_bytes_refuses_what_the_loader_would() -> None:
    manifest = Manifest.from_bytes(json.dumps(VALID).encode())
    for plan in ({"x": float("nan")}, {"x": {1, 2}}, {3: 4}, {"x": "\ud800"}):
        broken = Manifest(manifest.edge_svd, manifest.source, manifest.model, plan, manifest.files)  # type: ignore[arg-type]
        with pytest.raises(BundleError):
            broken.to_bytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    accepts_or_refuses(data)


@settings(max_examples=300)
@given(st.sampled_from(every_field()), json_values)
def test_any_field_is_accepted_or_an_error(path: tuple[str, ...], value: Any) -> None:
    accepts_or_refuses(changed(lambda v: parent(v, path).update({path[-1]: value})))


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_any_flipped_byte_is_accepted_or_an_error(position: int, byte: int) -> None:
    data = bytearray(json.dumps(VALID).encode())
    data[position % len(data)] = byte
    accepts_or_refuses(bytes(data))


def accepts_or_refuses(data: bytes) -> None:
    try:
        manifest = Manifest.from_bytes(data)
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()


def test_measurements_are_padded_to_4096_bytes() -> None:
    value = {"kl": 0.25, "name": "ü"}
    data = pack_measurements(value)
    assert len(data) == 4096
    assert data.endswith(b"   ")
    assert unpack_measurements(data) == value
    assert unpack_measurements(pack_measurements({})) == {}


def test_measurements_that_do_not_fit() -> None:
    room = 4096 - len(b'{"x":""}\n')
    assert len(pack_measurements({"x": "y" * room})) == 4096
    with pytest.raises(Failure, match="4097 bytes"):
        pack_measurements({"x": "y" * (room + 1)})
    with pytest.raises(Failure, match="not finite"):
        pack_measurements({"x": float("inf")})


@pytest.mark.parametrize(
    "data", [b"", b" " * 4096, b"{}", b"[]".ljust(4096), b'{"a":NaN}'.ljust(4096), b"{}".ljust(4097)]
)
def test_damaged_measurements(data: bytes) -> None:
    with pytest.raises(BundleError):
        unpack_measurements(data)


def test_the_real_manifest_is_compact(pristine: Path) -> None:
    data = (pristine / "edge_svd.json").read_bytes()
    assert data == Manifest.from_bytes(data).to_bytes()
    assert b": " not in data
