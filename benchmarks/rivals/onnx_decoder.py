"""An ONNX decoder with the input names of Optimum and onnxruntime-genai, its past and present one numpy buffer.

For graphs with GroupQueryAttention, which then writes new keys and values in place, so that nothing is copied a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from protocol import CONTEXT, Array, Request


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


class OnnxDecoder:
    """Inputs input_ids, attention_mask, position_ids (or not), past_key_values.N.key/value; outputs logits, present.

    `last_only`: the graph gives the logits of the last position alone.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, request: Request, context: int = CONTEXT, last_only: bool = False
    ) -> None:
        self.session, self.position, self.batch = session, 0, request.batch
        inputs = {item.name: item for item in session.get_inputs()}
        self.has_positions = "position_ids" in inputs
        self.cache: dict[str, onnxruntime.OrtValue] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self.buffers: list[Array] = []
        for name, item in inputs.items():
            if name.startswith("past_key_values."):
                heads, width = int(item.shape[1]), item.shape[3]
                self.shapes[name] = heads, width if isinstance(width, int) else int(request.options["head_dim"])
                self.buffers.append(np.zeros((request.batch, heads, context, self.shapes[name][1]), np.float32))
                self.cache[name] = onnxruntime.OrtValue.ortvalue_from_numpy(self.buffers[-1])
        logits = next(item for item in session.get_outputs() if item.name == "logits")
        self.vocabulary, self.last_only = int(logits.shape[2]), last_only
        self.binding = session.io_binding()
        for name, value in self.cache.items():
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.rows: dict[int, Array] = {}

    def reset(self) -> None:
        self.position = 0

    def feed(self, ids: Array) -> Array:
        batch, count = ids.shape
        self._bind(self.binding, ids, self.position)
        # The logits' own buffer, one token wide, is made once; a prompt's is not kept.
        rows = 1 if self.last_only else count
        made = self.rows.get(rows)
        if made is None:
            made = np.zeros((batch, rows, self.vocabulary), np.float32)
            if rows == 1:
                self.rows[rows] = made
        self.binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(made))
        self.session.run_with_iobinding(self.binding)
        self.position += count
        return made[:, -1]

    def logits(self, ids: Array) -> Array:
        if self.last_only:
            raise ValueError("this graph has the last position's logits alone")
        binding = self.session.io_binding()
        self._bind(binding, ids[None], 0)
        for name, (heads, width) in self.shapes.items():
            binding.bind_cpu_input(name, np.zeros((1, heads, 0, width), np.float32))
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy()[0])

    def _bind(self, binding: Any, ids: Array, start: int) -> None:
        batch, count = ids.shape
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((batch, start + count), np.int64))
        if self.has_positions:
            positions = np.arange(start, start + count, dtype=np.int64)
            binding.bind_cpu_input("position_ids", np.tile(positions, (batch, 1)))
