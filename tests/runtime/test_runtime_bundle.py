from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_tiny import LAYERS, set_external, write_manifest

from edge_svd.runtime.bundle import is_bundle, open_bundle, read_measurements, verify
from edge_svd.runtime.errors import BundleError, InputError
from edge_svd.runtime.onnx_external import check_external_data
from edge_svd.runtime.session import Session

FILES = (
    "config.json",
    "model.onnx",
    "model.onnx.data",
    "model_scoring.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def test_opens_and_verifies(pristine: Path) -> None:
    bundle = open_bundle(pristine)
    assert set(bundle.manifest.files) == set(FILES)
    total = sum(path.stat().st_size for path in pristine.iterdir())
    assert bundle.file_bytes == total
    assert verify(pristine) == {"bundle": str(pristine), "files": len(FILES), "file_bytes": total, "unlisted": []}


@pytest.mark.parametrize("name", [*FILES, "edge_svd.json", "measurements.json"])
def test_one_flipped_bit_at_every_stride(folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for position in {*range(0, len(good), max(1, len(good) // 12)), len(good) - 1}:
        data = bytearray(good)
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        if name == "measurements.json" or (name == "edge_svd.json" and position == len(good) - 1):
            # Neither is under a digest, so a flip may leave another valid text; it must not raise anything else.
            try:
                verify(folder)
            except BundleError:
                pass
        elif name == "edge_svd.json":
            # A letter of a free text may change without contradiction; digests, names and numbers of files may not.
            try:
                open_bundle(folder)
            except BundleError:
                continue
            assert set(open_bundle(folder).manifest.files) == set(FILES)
        else:
            refused(folder, f"{name} in the bundle .* is damaged")
    path.write_bytes(good)
    open_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_extended(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for data in (good[:-1], good[: len(good) // 2], b"", good + b"\0"):
        (folder / name).write_bytes(data)
        refused(folder, f"{name} in the bundle .* has {len(data)} bytes instead of {len(good)}")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.parametrize("name", [*FILES, "edge_svd.json", "measurements.json"])
def test_symlink(folder: Path, tmp_path: Path, name: str) -> None:
    os.rename(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, f"{name} in the bundle .* is a symbolic link")


@pytest.mark.parametrize("name", [*FILES, "edge_svd.json", "measurements.json"])
def test_fifo_and_folder_in_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} in the bundle .* is not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} in the bundle .* is not a regular file")


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "not a folder")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "not a bundle of edge-svd")


def test_is_bundle(folder: Path, tmp_path: Path) -> None:
    assert is_bundle(folder)
    (folder / "model.onnx").unlink()
    assert is_bundle(folder), "a damaged bundle is still ours"
    (folder / "edge_svd.json").write_text('{"schema": 1}')
    assert not is_bundle(folder)
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "nowhere")


def test_swapped_tokenizer(folder: Path) -> None:
    data = bytearray((folder / "tokenizer.json").read_bytes())
    position = data.index(b'"a":')
    data[position + 1 : position + 2] = b"b"
    (folder / "tokenizer.json").write_bytes(data)
    refused(folder, "tokenizer.json .* damaged")


def test_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    token = dict(tokenizer["added_tokens"][0], id=258, content="<|more|>")
    tokenizer["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_manifest(folder)
    with pytest.raises(BundleError, match="has 259 tokens and the model 258"):
        verify(folder)


def test_tokenizer_that_is_no_tokenizer(folder: Path) -> None:
    for data in (b"", b"{}", b"[" * 10_000, b"\xff"):
        (folder / "tokenizer.json").write_bytes(data)
        write_manifest(folder)
        with pytest.raises(BundleError, match="tokenizer.json cannot be read"):
            verify(folder)


def test_without_digests_the_rest_is_still_checked(folder: Path) -> None:
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    open_bundle(folder, check_digests=False)
    (folder / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(BundleError, match="instead of"):
        open_bundle(folder, check_digests=False)


def test_file_replaced_after_the_check(folder: Path) -> None:
    bundle = open_bundle(folder)
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "other").write_bytes(data[::-1])
    os.replace(folder / "other", folder / "model.onnx.data")
    with pytest.raises(BundleError, match="replaced while"):
        Session(bundle)
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(BundleError, match=r"config\.json .* damaged"):
        bundle.read("config.json")


def test_unlisted_files_are_reported_and_never_read(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ evil }}")
    assert verify(folder)["unlisted"] == ["chat_template.jinja"]


def test_measurements_may_be_absent(folder: Path) -> None:
    (folder / "measurements.json").unlink()
    assert read_measurements(open_bundle(folder).path) == {}


def test_graph_that_contradicts_the_manifest(folder: Path) -> None:
    for change, words in (
        ({"num_layers": LAYERS + 1}, "lacks input 'past_key_values.2.key'"),
        ({"num_layers": LAYERS - 1}, "unknown input 'past_key_values.1.key'"),
        ({"head_dim": 8}, "contradicts"),
        ({"num_kv_heads": 4}, "contradicts"),
        ({"vocab_size": 300}, "'logits'.*contradicts"),
    ):
        write_manifest(folder, **change)
        with pytest.raises(BundleError, match=words):
            Session(open_bundle(folder))


def test_graph_that_onnxruntime_refuses(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"refuses model\.onnx"):
        Session(open_bundle(folder))


# Attacks on the places of weights, through the whole loader with honest digests.


def external(model: onnx.ModelProto) -> list[TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]


def entry(tensor: TensorProto, key: str, value: str) -> None:
    for item in tensor.external_data:
        if item.key == key:
            item.value = value


def place(tensor: TensorProto) -> tuple[int, int]:
    values = {item.key: item.value for item in tensor.external_data}
    return int(values["offset"]), int(values["length"])


def in_branch(model: onnx.ModelProto) -> None:
    """Hide a tensor with a foreign location in a graph inside an attribute inside a graph inside an attribute."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    tensor.ClearField("raw_data")
    set_external(tensor, "../secret", 0, 16)
    inner = helper.make_graph([], "inner", [], [], [tensor])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "outer", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=outer))


def in_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    tensor.ClearField("raw_data")
    set_external(tensor, "/etc/passwd", 0, 16)
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def in_function(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    tensor.ClearField("raw_data")
    set_external(tensor, "/etc/passwd", 0, 16)
    node = helper.make_node("Constant", [], ["x"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["x"], [node], [helper.make_opsetid("", 21)]))


def overlap(model: onnx.ModelProto) -> None:
    first, second = sorted(external(model), key=place)[:2]
    offset, _ = place(first)
    set_external(second, "model.onnx.data", offset + 4, place(second)[1])


def resize(model: onnx.ModelProto, dims: list[int]) -> None:
    tensor = external(model)[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)


ATTACKS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "parent": (lambda m: entry(external(m)[0], "location", "../secret"), "looks for .* instead of"),
    "absolute": (lambda m: entry(external(m)[0], "location", "/etc/passwd"), "looks for .* instead of"),
    "dotted": (lambda m: entry(external(m)[0], "location", "./model.onnx.data"), "looks for .* instead of"),
    "nul": (lambda m: entry(external(m)[0], "location", "model.onnx.data\0x"), "looks for .* instead of"),
    "memory": (lambda m: entry(external(m)[0], "location", "*/_ORT_MEM_ADDR_/*"), "looks for .* instead of"),
    "other file": (lambda m: entry(external(m)[0], "location", "tokenizer.json"), "looks for .* instead of"),
    "past the end": (lambda m: entry(external(m)[0], "offset", "999999999"), "has only"),
    "just past the end": (
        lambda m: entry(max(external(m), key=place), "offset", str(max(map(place, external(m)))[0] + 1)),
        "has only",
    ),
    "huge offset": (lambda m: entry(external(m)[0], "offset", str(2**63 - 1)), "has only"),
    "negative offset": (lambda m: entry(external(m)[0], "offset", "-1"), "not a number of bytes"),
    "offset text": (lambda m: entry(external(m)[0], "offset", "0x10"), "not a number of bytes"),
    "arabic digits": (lambda m: entry(external(m)[0], "offset", "٣"), "not a number of bytes"),
    "long offset": (lambda m: entry(external(m)[0], "offset", "0" * 5000), "not a number of bytes"),
    "length": (lambda m: entry(external(m)[0], "length", "4"), "do not fit its shape"),
    "no length": (lambda m: external(m)[0].external_data.pop(), "exactly a location, an offset and a length"),
    "twice": (lambda m: external(m)[0].external_data.add(key="location", value="x"), "two entries 'location'"),
    "extra entry": (lambda m: external(m)[0].external_data.add(key="checksum", value="x"), "exactly a location"),
    "no entries": (lambda m: external(m)[0].ClearField("external_data"), "does not say clearly"),
    "internal flag": (lambda m: setattr(external(m)[0], "data_location", 0), "does not say clearly"),
    "both": (lambda m: setattr(external(m)[0], "raw_data", b"x"), "do not fit|both inside and outside"),
    "negative dimension": (lambda m: resize(m, [-1, 32]), "negative dimension"),
    "overflow": (lambda m: resize(m, [2**62, 2**62]), "overflows"),
    "wrap to zero": (lambda m: resize(m, [2**32, 2**32]), "overflows"),
    "dtype": (lambda m: setattr(external(m)[0], "data_type", TensorProto.DOUBLE), "do not fit its shape"),
    "unknown dtype": (lambda m: setattr(external(m)[0], "data_type", 999), "unknown data type"),
    "strings": (lambda m: setattr(external(m)[0], "data_type", TensorProto.STRING), "do not fit its shape"),
    "overlap": (overlap, "overlap"),
    "nested": (in_branch, r"'\.\./secret'"),
    "constant": (in_constant, "'/etc/passwd'"),
    "function": (in_function, "'/etc/passwd'"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
    "training": (lambda m: m.training_info.add(), "training"),
}


@pytest.mark.parametrize("name", ["model.onnx", "model_scoring.onnx"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_external_data_attacks(folder: Path, name: str, attack: str) -> None:
    change, words = ATTACKS[attack]
    model = onnx.load(folder / name, load_external_data=False)
    change(model)
    (folder / name).write_bytes(model.SerializeToString())
    write_manifest(folder)
    refused(folder, words)


def test_equal_ranges_are_tied_weights(pristine: Path) -> None:
    model = onnx.load(pristine / "model.onnx", load_external_data=False)
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(external(model)[0])
    tensor.name = "tied"
    size = (pristine / "model.onnx.data").stat().st_size
    found = check_external_data(model.SerializeToString(), name="x", location="model.onnx.data", size=size)
    assert len(found) == len(external(model))
    places = {item.name: (item.offset, item.length) for item in found}
    assert places == {item.name: place(item) for item in external(model)}


def test_packed_sub_byte_types() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.UINT4, dims=[5])
    set_external(tensor, "d", 0, 3)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    assert check_external_data(model.SerializeToString(), name="x", location="d", size=3)[0].length == 3
    set_external(tensor, "d", 0, 5)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    with pytest.raises(BundleError, match="do not fit"):
        check_external_data(model.SerializeToString(), name="x", location="d", size=5)


def test_cut_and_flipped_graphs_never_raise_anything_else(pristine: Path) -> None:
    good = (pristine / "model.onnx").read_bytes()
    size = (pristine / "model.onnx.data").stat().st_size
    random = np.random.default_rng(0)
    damaged = [good[:cut] for cut in range(0, len(good), 37)]
    for position in random.integers(0, len(good), 400):
        data = bytearray(good)
        data[position] = random.integers(0, 256)
        damaged.append(bytes(data))
    damaged += [b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"\x3b" * 10, bytes(random.bytes(1000))]
    refusals = 0
    for data in damaged:
        try:
            check_external_data(data, name="x", location="model.onnx.data", size=size)
        except BundleError:
            refusals += 1
    assert refusals > len(damaged) // 4


def test_deep_nesting_is_walked_without_recursion() -> None:
    """A node in a graph in an attribute of a node, ten thousand times."""
    message = b""
    for _ in range(10_000):
        for field in (6, 5, 1):  # attribute.g, node.attribute, graph.node
            message = bytes([field << 3 | 2]) + length(len(message)) + message
    model = b"\x3a" + length(len(message)) + message
    assert check_external_data(model, name="x", location="d", size=0) == []


def length(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_digest_is_sha256(folder: Path) -> None:
    manifest = json.loads((folder / "edge_svd.json").read_bytes())
    data = (folder / "config.json").read_bytes()
    assert manifest["files"]["config.json"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
