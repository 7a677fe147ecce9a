"""What `fit` and `eval` say of a sentence encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_svd.files import format_size
from edge_svd.report.plan_table import plan_table

if TYPE_CHECKING:
    from edge_svd.fit_encoder import EncoderFit


def encoder_summary(result: EncoderFit) -> str:
    """The plan, then prediction beside measurement."""
    measured, plan = result.measured, result.plan
    return (
        f"{plan_table(plan.to_json())}\n\n{result.bundle}\n"
        f"  size      predicted {format_size(plan.file_bytes)}, measured {format_size(measured['file_bytes'])}\n"
        f"  cosine    predicted {1 - plan.kl:.5f}, measured {measured['cosine']:.5f} to the dense model "
        "(held-out calibration passages)\n"
        f"  speed     measured {measured['passages_per_s']:.0f} passages/s here\n"
        f"  proof     cosine {result.proof.cosine:.5f} against the checkpoint"
    )


def cosine_line(result: Mapping[str, Any]) -> str:
    """What `eval` measures."""
    return (
        f"cosine {result['cosine']:.5f} to the reference (least {result['least_cosine']:.5f}) over "
        f"{result['passages']} passages of {result['tokens']} tokens"
    )
