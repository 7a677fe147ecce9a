"""onnxruntime itself on a graph with GroupQueryAttention, IO binding, one buffer for past and present."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import tokenizers
from onnx_decoder import OnnxDecoder, session_options
from protocol import Request, main


def opened(request: Request) -> OnnxDecoder:
    folder = Path(request.path)
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), session_options(request.threads), providers=["CPUExecutionProvider"]
    )
    decoder = OnnxDecoder(session, request)
    decoder.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return decoder


if __name__ == "__main__":
    main(opened, ("onnxruntime", "numpy", "tokenizers"))
