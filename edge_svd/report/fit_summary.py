"""What `fit` says at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_svd.files import format_size
from edge_svd.report.plan_table import plan_table

if TYPE_CHECKING:
    from edge_svd.fit import FitResult


def fit_summary(result: FitResult) -> str:
    """The plan, then prediction beside measurement."""
    measured, plan = result.measured, result.plan
    peak = "-" if measured["peak_rss_bytes"] is None else format_size(measured["peak_rss_bytes"])
    missed = [name.replace("_", " ") for name, met in result.targets_met.items() if met is False]
    verdict = f"\n  MISSED    the target for {' and '.join(missed)} was not met in the measurement" if missed else ""
    prefill, changes = plan.prefill_tokens_per_s, ""
    prompts = "" if prefill is None else f"predicted {prefill:.0f} tokens/s on {plan.device}, "
    if result.refined is not None:
        changes += _change("refined", result.refined.before, result.refined.after)
    if result.tuned is not None:
        changes += _change("tuned", result.tuned.before, result.tuned.after)
    return (
        f"{plan_table(plan.to_json())}\n\n{result.bundle}\n"
        f"  size      predicted {format_size(plan.file_bytes)}, measured {format_size(measured['file_bytes'])}\n"
        f"  KL        predicted {plan.kl:.4f}, measured {measured['kl']:.4f} nats per token "
        "(held-out calibration text)\n"
        f"  peak RSS  predicted {format_size(plan.peak_rss_bytes)} on {plan.device}, measured {peak} here\n"
        f"  decode    predicted {plan.decode_tokens_per_s:.1f} tokens/s on {plan.device}, "
        f"measured {measured['decode_tokens_per_s']:.1f} here\n"
        f"  prefill   {prompts}measured {measured['prefill_tokens_per_s']:.0f} tokens/s here\n"
        f"  proof     {result.proof.top1_agreement:.1%} equal first choices and KL {result.proof.kl_mean:.5f} "
        f"against the checkpoint{changes}{verdict}"
    )


def _change(what: str, before: float, after: float) -> str:
    """A line about an improvement that was tried, KL in nats per token on held-out calibration windows."""
    kept = "" if after < before else ": no better, not kept"
    return f"\n  {what:<9} KL {before:.4f} before, {after:.4f} after{kept}"
