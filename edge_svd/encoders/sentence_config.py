"""What a sentence-transformers folder says beside the weights: how it pools, how long inputs may be, letter case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.companions import read_object
from edge_svd.errors import InputError
from edge_svd.files import read_json

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class SentenceConfig:
    """Mean pooling, any length and the tokenizer's own case where nothing is said."""

    pooling: str = "mean"
    max_tokens: int | None = None
    lower_case: bool = False

    def check_case(self, tokenizer: Any, where: str) -> None:
        """InputError if texts shall be lowered before a tokenizer that does not do that itself."""
        normalizer = tokenizer.backend_tokenizer.normalizer
        if self.lower_case and (normalizer is None or normalizer.normalize_str("A") != "a"):
            raise InputError(f"{where} lowers texts before its tokenizer reads them, which is not supported.")


def sentence_config(file: Callable[[str], Path], where: str) -> SentenceConfig:
    """From the files of a model folder, by name; InputError on a module or a pooling that cannot be expressed."""
    modules_file = file("modules.json")
    if not modules_file.is_file():
        return SentenceConfig()
    modules = read_json(modules_file, "file")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{where} has a modules.json that is no list of modules.")
    paths = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    for kind in paths:
        if kind not in KNOWN_MODULES:
            raise InputError(f"{where} has a module {kind[:40]!r} behind its encoder, which is not supported.")
    pooling = _pooling(read_object(file(f"{paths['Pooling']}/config.json")), where) if paths.get("Pooling") else "mean"
    limits = read_object(file("sentence_bert_config.json"))
    longest = limits.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 3):
        raise InputError(f"{where} has the impossible max_seq_length {longest!r:.40}.")
    return SentenceConfig(pooling, longest, bool(limits.get("do_lower_case", False)))


def _pooling(config: dict[str, Any], where: str) -> str:
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        shown = ", ".join(chosen) or "no pooling"
        raise InputError(f"{where} pools by {shown[:80]}; supported are the mean of all tokens, and the first one.")
    return _MODES[chosen[0]]
