"""OpenVINO itself on the stateful model that optimum-intel exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import tokenizers
from openvino import opset13
from protocol import Array, Request, main


def keep_last_position(model: openvino.Model) -> None:
    """Slice the input of the vocabulary's product to the last position, as OpenVINO GenAI's pipeline does."""
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    start, stop, step, axis = (openvino.op.Constant(np.array([value], np.int64)) for value in (-1, 2**31 - 1, 1, 1))
    last = opset13.slice(node.input_value(0), start, stop, step, axis)
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class OpenVino:
    """The state holds the cache; beam_idx is the identity."""

    def __init__(self, request: Request) -> None:
        folder = Path(request.path)
        core = openvino.Core()
        model = core.read_model(folder / "openvino_model.xml")
        if request.task != "score":
            keep_last_position(model)
        settings = {"INFERENCE_NUM_THREADS": request.threads, "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.names = {name for port in model.inputs for name in port.get_names()}
        self.beams = np.arange(request.batch, dtype=np.int32)
        self.reset()

    def reset(self) -> None:
        self.request.reset_state()
        self.position = 0

    def feed(self, ids: Array) -> Array:
        return self._run(ids)[:, -1]

    def logits(self, ids: Array) -> Array:
        self.reset()
        return self._run(ids[None])[0]

    def _run(self, ids: Array) -> Array:
        batch, count = ids.shape
        stop = self.position + count
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, stop), np.int64),
            "position_ids": np.tile(np.arange(self.position, stop, dtype=np.int64), (batch, 1)),
            "beam_idx": self.beams,
        }
        given = {name: value for name, value in inputs.items() if name in self.names}
        result = self.request.infer(given, share_inputs=True, share_outputs=True)
        self.position = stop
        return np.asarray(result["logits"])


if __name__ == "__main__":
    main(OpenVino, ("openvino", "optimum-intel", "nncf", "transformers", "numpy"))
