"""`python convert_openvino.py MODEL OUT 8|4`: optimum-intel's export with weights of 8 bits, or 4 in groups of 64."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig


def convert(model: str, out: str, bits: int) -> None:
    config = OVWeightQuantizationConfig(bits=8) if bits == 8 else OVWeightQuantizationConfig(bits=4, group_size=64)
    made = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, quantization_config=config)
    made.save_pretrained(out)
    shutil.copyfile(Path(model) / "tokenizer.json", Path(out) / "tokenizer.json")


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], int(sys.argv[3]))
