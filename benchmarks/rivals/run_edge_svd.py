"""Our own runtime on a bundle. Its Session holds one conversation; a batch is bound to the same graph here."""

from __future__ import annotations

from onnx_decoder import OnnxDecoder
from protocol import CONTEXT, Array, Request, main

from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.onnx_session import open_onnx
from edge_svd.runtime.schema import MODEL_NAME
from edge_svd.runtime.score import ScoringSession
from edge_svd.runtime.session import Session
from edge_svd.runtime.tokenizer import load_tokenizer


class EdgeSvd:
    """Digests are checked and the tokenizer is loaded, as `edge-svd run` does."""

    def __init__(self, bundle: Bundle, request: Request) -> None:
        self.tokenizer = load_tokenizer(bundle)
        self.session = Session(bundle, threads=request.threads)

    def reset(self) -> None:
        self.session.truncate()

    def feed(self, ids: Array) -> Array:
        row = ids[0]
        logits = self.session.step(int(row[0])) if len(row) == 1 else self.session.prefill(row.tolist())
        return logits[None]


class Scoring:
    """model_scoring.onnx."""

    def __init__(self, bundle: Bundle, request: Request) -> None:
        self.session = ScoringSession(bundle, threads=request.threads)

    def logits(self, ids: Array) -> Array:
        return self.session.logits(ids[None])[0]


def opened(request: Request) -> EdgeSvd | Scoring | OnnxDecoder:
    bundle = open_bundle(request.path)
    if request.task == "score":
        return Scoring(bundle, request)
    if request.batch > 1:
        session = open_onnx(bundle, MODEL_NAME, threads=request.threads, spinning=True, arena=True)
        return OnnxDecoder(session, request, min(CONTEXT, bundle.manifest.model.max_context), last_only=True)
    return EdgeSvd(bundle, request)


if __name__ == "__main__":
    main(opened, ("edge-svd", "onnxruntime", "tokenizers", "numpy"))
