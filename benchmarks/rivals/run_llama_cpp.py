"""llama.cpp by its C interface: one batch a call, logits of the last position of each sequence alone."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
from protocol import CONTEXT, Array, Request, main

Logger = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
quiet = Logger(lambda level, text, data: None)


class LlamaCpp:
    """Keys and values of the whole context are one buffer that llama.cpp makes while it loads."""

    def __init__(self, request: Request) -> None:
        llama_cpp.llama_log_set(ctypes.cast(quiet, llama_cpp.llama_log_callback), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(request.path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {request.path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT
        settings.n_batch = CONTEXT
        settings.n_seq_max = request.batch
        settings.n_threads = settings.n_threads_batch = request.threads
        settings.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        self.position = 0

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def feed(self, ids: Array) -> Array:
        count, length = ids.shape
        self._decode(ids, last_only=True)
        return np.stack([self._row(sequence * length + length - 1) for sequence in range(count)])

    def logits(self, ids: Array) -> Array:
        self.reset()
        self._decode(ids[None], last_only=False)
        return np.stack([self._row(index) for index in range(len(ids))])

    def _decode(self, ids: Array, *, last_only: bool) -> None:
        batch, index = self.batch, 0
        for sequence, row in enumerate(ids.tolist()):
            for offset, token in enumerate(row):
                batch.token[index] = token
                batch.pos[index] = self.position + offset
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = not last_only or offset == len(row) - 1
                index += 1
        batch.n_tokens = index
        failed = llama_cpp.llama_decode(self.context, batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        self.position += ids.shape[1]

    def _row(self, index: int) -> Array:
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))


if __name__ == "__main__":
    main(LlamaCpp, ("llama-cpp-python", "numpy"))
