"""A tiny decoder, made with the onnx package alone.

Two GroupQueryAttention layers over a small byte-level vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edge_svd.runtime.schema import FileEntry, Manifest, ModelInfo, Source, pack_measurements

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MAX_CONTEXT = 2, 4, 2, 16, 32, 64
EOS_TOKEN, BOS_TOKEN = "<|end|>", "<|start|>"
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: every byte is a token, so every character above ASCII spans several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS_TOKEN, EOS_TOKEN])
    return tokenizer


VOCABULARY = make_tokenizer().get_vocab_size()


def make_weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights, shapes [in, out]; float32."""
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, HIDDEN), "head": (HIDDEN, VOCABULARY)}
    for layer in range(LAYERS):
        shapes[f"q.{layer}"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[f"k.{layer}"] = shapes[f"v.{layer}"] = (HIDDEN, KV_HEADS * HEAD_DIM)
        shapes[f"o.{layer}"] = (HEADS * HEAD_DIM, HIDDEN)
    weights = {name: random.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}
    angles = np.arange(MAX_CONTEXT)[:, None] * 100.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    return weights | {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


def make_graph(weights: dict[str, np.ndarray[Any, Any]], *, every_position: bool) -> onnx.ModelProto:
    """The decoder with the input and output names of a bundle; weights still inside."""
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["valid"], keepdims=0),
        helper.make_node("Sub", ["valid", "one"], ["last64"]),
        helper.make_node("Cast", ["last64"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one_scalar"], ["total64"], axis=0),
        helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden.0"]),
    ]
    for i in range(LAYERS):
        nodes += [helper.make_node("MatMul", [f"hidden.{i}", f"{p}.{i}"], [f"{p}_out.{i}"]) for p in "qkv"]
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        nodes += [
            helper.make_node(
                "GroupQueryAttention",
                [f"q_out.{i}", f"k_out.{i}", f"v_out.{i}", *past, "seqlens_k", "total", "cos", "sin"],
                [f"attention.{i}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
            ),
            helper.make_node("MatMul", [f"attention.{i}", f"o.{i}"], [f"o_out.{i}"]),
            helper.make_node("Add", [f"hidden.{i}", f"o_out.{i}"], [f"hidden.{i + 1}"]),
        ]
    final = f"hidden.{LAYERS}"
    if not every_position:
        nodes.append(helper.make_node("Slice", [final, "minus_one", "huge", "one"], ["final"]))
        final = "final"
    nodes.append(helper.make_node("MatMul", [final, "head"], ["logits"]))
    constants = {"one": np.array([1]), "one_scalar": np.array(1), "axis": np.array([1])}
    if not every_position:
        constants |= {"minus_one": np.array([-1]), "huge": np.array([2**31])}
        nodes[-2].input.insert(3, "one")  # axes = 1, steps = 1
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "out", VOCABULARY])]
    for i in range(LAYERS):
        for part in ("key", "value"):
            shape = ["batch", KV_HEADS, "past", HEAD_DIM]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape))
            shape = ["batch", KV_HEADS, "present", HEAD_DIM]
            outputs.append(helper.make_tensor_value_info(f"present.{i}.{part}", TensorProto.FLOAT, shape))
    initializers = [numpy_helper.from_array(array, name) for name, array in {**constants, **weights}.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )


def externalise(model: onnx.ModelProto, names: set[str], data: bytearray, places: dict[str, tuple[int, int]]) -> None:
    """Move the named initializers into `data`, 64-byte aligned; a name already placed keeps its place."""
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        if tensor.name not in places:
            data.extend(b"\0" * (-len(data) % 64))
            places[tensor.name] = (len(data), len(tensor.raw_data))
            data.extend(tensor.raw_data)
        tensor.ClearField("raw_data")
        set_external(tensor, "model.onnx.data", *places[tensor.name])


def set_external(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Point a tensor to a place in a file."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def write_manifest(folder: Path, **changes: Any) -> None:
    """(Re)write edge_svd.json from what lies in the folder."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name not in ("edge_svd.json", "measurements.json"):
            data = path.read_bytes()
            files[path.name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())
    tokenizer = make_tokenizer()
    model: dict[str, Any] = {
        "family": "llama",
        "vocab_size": VOCABULARY,
        "num_layers": LAYERS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "kv_dtype": "float32",
        "max_context": MAX_CONTEXT,
        "bos_token_id": tokenizer.token_to_id(BOS_TOKEN),
        "eos_token_ids": (tokenizer.token_to_id(EOS_TOKEN),),
    }
    manifest = Manifest("0.1.0", Source("tiny", "00ff"), ModelInfo(**(model | changes)), {"sites": {}}, files)
    (folder / "edge_svd.json").write_bytes(manifest.to_bytes())


def write_bundle(folder: Path, weights: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A complete bundle with the given weights."""
    folder.mkdir()
    data, places = bytearray(), {}
    for name, every_position in (("model.onnx", False), ("model_scoring.onnx", True)):
        model = make_graph(weights, every_position=every_position)
        externalise(model, set(weights), data, places)
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    (folder / "model.onnx.data").write_bytes(data)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": BOS_TOKEN}, "eos_token": EOS_TOKEN, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    (folder / "measurements.json").write_bytes(pack_measurements({}))
    write_manifest(folder)
    return folder
