"""onnxruntime sessions of a bundle: weights stay mapped, packed matrices are unpacked, the graph is checked."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.decoding_graph import DecodingGraph, decoding_graph
from edge_svd.runtime.errors import BundleError, Failure, InputError
from edge_svd.runtime.graph_products import WHOLE
from edge_svd.runtime.handed_over import HandedOver
from edge_svd.runtime.kernel_support import whole_pass_works
from edge_svd.runtime.memory import large_blocks_returned, release_code_pages, release_free_memory
from edge_svd.runtime.scales import given_scales
from edge_svd.runtime.schema import (
    COLUMNS,
    EMBEDDED,
    KEYS,
    KV_DTYPES,
    LAST_KEY,
    PLACES,
    WEIGHTS_NAME,
    EncoderInfo,
)
from edge_svd.runtime.unpack import unpacked

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def default_threads() -> int:
    """Usable processors; half of them where there are more than four, since those are usually two to a core."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if usable <= 4 else min(usable // 2, 16)


def open_onnx(
    bundle: Bundle,
    name: str,
    *,
    threads: int | None,
    spinning: bool,
    arena: bool,
    disabled_optimizers: Sequence[str] = (),
    decoding: bool = False,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session whose weights stay mapped, packed matrices unpacked for it.

    With `decoding` it takes the first hidden state and the columns of the logits as inputs where it can (`cut_of`).
    BundleError if onnxruntime refuses the graph, or it is not what the manifest says.
    """
    if threads is not None and threads < 1:
        raise InputError(f"The number of threads must be at least 1, not {threads}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Every decode step has a new shape, and a memory pattern would be kept for each of them.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    bundle.check_unchanged()
    release_code_pages()
    try:
        graph = bundle.read(name)
        if WHOLE.encode() in graph and not whole_pass_works():
            raise BundleError(
                f"The bundle {bundle.path} multiplies whole prompts in int8, which onnxruntime "
                f"{onnxruntime.__version__} computes wrongly on this processor; fit the model for it with --device."
            )
        cut = DecodingGraph(graph)
        if decoding:
            cut = decoding_graph(graph, bundle.path / WEIGHTS_NAME, bundle.manifest.decoder.vocab_size)
        model, handed = prepared(bundle.path, name, cut.graph, options, changed=cut.changed)
        with large_blocks_returned():
            session = onnxruntime.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(disabled_optimizers),
            )
        release_free_memory()  # what folding left over is a tenth of the weights
    except MemoryError:
        raise Failure(f"There is not enough memory to load {name}.") from None
    except BundleError:
        raise
    except Exception as error:
        message = str(error).replace("\n", " ")[:300]
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} refuses {name} of the bundle {bundle.path} ({message})."
        ) from None
    bundle.check_unchanged()
    session.edge_svd_cut = dataclasses.replace(cut, graph=b"")
    check_graph(session, bundle, name)
    session.edge_svd_handed = handed  # must outlive the session
    for own in handed:
        own.give_back(session)
    release_code_pages()
    return session


def cut_of(session: onnxruntime.InferenceSession) -> DecodingGraph:
    """What a session of `open_onnx` takes as inputs instead of computing it."""
    found: DecodingGraph = session.edge_svd_cut
    return found


def prepared(
    folder: Path, name: str, graph: bytes, options: onnxruntime.SessionOptions, *, changed: bool = False
) -> tuple[str | bytes, tuple[HandedOver, ...]]:
    """What to make a session of, with `options`, from the graph `name` of a bundle's folder, and what must outlive it.

    The path of the graph; the graph itself where it is `changed` from the file's, or where matrices or scales are
    computed for it, and those, which `options` refer to.
    """
    path = folder / WEIGHTS_NAME
    if not path.stat().st_size:
        return str(folder / name), ()
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    weights = np.frombuffer(mapped, np.uint8)
    graph, rows = unpacked(graph, weights, name)
    graph, scales = given_scales(graph, weights)
    if rows or scales or changed:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not (rows or scales):
        return (graph if changed else str(folder / name)), ()
    handed = [HandedOver(rows), HandedOver(scales)]
    names: list[str] = []
    values: list[onnxruntime.OrtValue] = []
    for own, makers in zip(handed, (rows, scales), strict=True):
        for key in makers:
            names.append(key)
            values.append(own.make(key))
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)  # what has been read need not stay resident
    for key, value in zip(names[len(rows) :], values[len(rows) :], strict=True):
        options.add_initializer(key, value)  # not copied, so that no copy stays
    release_free_memory()
    options.add_external_initializers(names, values)
    return graph, tuple(handed)


def expected_inputs(bundle: Bundle) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Input name → (onnxruntime type, shape with None where it varies) that a graph of this bundle may have."""
    if isinstance(bundle.manifest.model, EncoderInfo):
        return {name: ("tensor(int64)", (None, None)) for name in ENCODER_INPUTS}
    model = bundle.manifest.model
    inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
        name: ("tensor(int64)", (None, None)) for name in ("input_ids", "attention_mask", "position_ids")
    }
    for layer in range(model.num_layers):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = (
                KV_DTYPES[model.kv_dtype],
                (None, model.num_kv_heads, None, model.head_dim),
            )
    return inputs


def check_graph(session: onnxruntime.InferenceSession, bundle: Bundle, name: str) -> None:
    """BundleError unless the graph has the inputs and outputs the manifest implies; position_ids may be absent."""
    wanted = expected_inputs(bundle)
    found = {item.name: (item.type, tuple(item.shape)) for item in session.get_inputs()}
    model = bundle.manifest.model
    outputs = {item.name: (item.type, tuple(item.shape)) for item in session.get_outputs()}
    wanted_outputs: dict[str, tuple[str, tuple[int | None, ...]]]
    if isinstance(model, EncoderInfo):
        wanted_outputs = {
            "last_hidden_state": ("tensor(float)", (None, None, model.hidden_size)),
            "sentence_embedding": ("tensor(float)", (None, model.hidden_size)),
        }
    else:
        wanted_outputs = {"logits": ("tensor(float)", (None, None, model.vocab_size))}
    for key, value in wanted.items():
        if key.startswith("past_key_values."):
            wanted_outputs["present." + key.removeprefix("past_key_values.")] = value
    cut = cut_of(session)
    if cut.rows is not None:
        wanted[EMBEDDED] = ("tensor(float)", (None, None, cut.rows.width))
    if cut.columns:
        wanted[COLUMNS] = ("tensor(int64)", (None, None, 1))
    spans: dict[str, tuple[str, tuple[int | None, ...]]] = {
        LAST_KEY: ("tensor(int32)", (None,)),
        KEYS: ("tensor(int32)", (1,)),
        PLACES: ("tensor(int64)", (None, None)),
    }
    wanted |= {key: spans[key] for key in cut.spans}
    wanted = {key: value for key, value in wanted.items() if key in found or key != "position_ids"}
    for what, have, want in (("input", found, wanted), ("output", outputs, wanted_outputs)):
        for key in sorted(set(have) ^ set(want)):
            state = "lacks" if key in want else "has the unknown"
            raise BundleError(
                f"The graph {name} of the bundle {bundle.path} {state} {what} {key!r}; export the bundle again."
            )
        for key, (kind, shape) in want.items():
            kind_found, shape_found = have[key]
            fits = len(shape_found) == len(shape) and all(
                a is None or not isinstance(b, int) or a == b for a, b in zip(shape, shape_found, strict=False)
            )
            if kind_found != kind or not fits:
                raise BundleError(
                    f"In {name} of the bundle {bundle.path}, the {what} {key!r} is {kind_found} {list(shape_found)}, "
                    f"which the manifest contradicts; export the bundle again."
                )
