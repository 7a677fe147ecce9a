"""Single results as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_svd.files import format_size


def score_line(result: Mapping[str, Any]) -> str:
    """Perplexity and, where measured, KL."""
    line = f"perplexity {result['perplexity']:.3f} ({result['nll']:.4f} nats per token over {result['tokens']} tokens)"
    return line + (f", KL to reference {result['kl_to_reference']:.4f}" if "kl_to_reference" in result else "")


def task_line(result: Mapping[str, Any]) -> str:
    """Accuracy, plain and by length, each with its standard error in brackets."""

    def share(key: str) -> str:
        error = result[f"{key}_stderr"]
        return f"{result[key]:.4f}" + (f" (± {error:.4f})" if error is not None else "")

    items = "1 item" if result["n"] == 1 else f"{result['n']} items"
    return f"acc {share('acc')}, acc_norm {share('acc_norm')} over {items}"


def bench_lines(result: Mapping[str, Any]) -> str:
    """Speed and memory of a bundle."""

    def size(key: str) -> str:
        return format_size(result[key]) if result[key] is not None else "not measured on this system"

    return "\n".join(
        (
            f"prefill   {result['prefill_tokens_per_s']:.0f} tokens/s",
            f"decode    {result['decode_tokens_per_s']:.1f} tokens/s",
            f"peak RSS  {size('peak_rss_bytes')} (anonymous {size('peak_anonymous_bytes')}) "
            f"with {result['context']} tokens in the cache",
            f"load      {result['load_s']:.2f} s",
            f"files     {format_size(result['file_bytes'])}",
        )
    )
