"""`python quantize_gguf.py F32.gguf OUT.gguf Q4_K_M`: llama.cpp's own quantisation, in its environment."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp


def quantize(source: str, target: str, kind: str) -> None:
    """RuntimeError where llama.cpp refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    llama_cpp.llama_backend_init()
    failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if failed:
        raise RuntimeError(f"llama_model_quantize to {kind} returned {failed}")


if __name__ == "__main__":
    quantize(*sys.argv[1:4])
