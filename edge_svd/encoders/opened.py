"""Open a sentence encoder: transformers' weights, and how its sentence-transformers folder pools them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd import companions as companion_files
from edge_svd import demo
from edge_svd.architectures import Site
from edge_svd.checkpoint import NUMPY_DTYPES
from edge_svd.encoders import companions as encoder_files
from edge_svd.encoders.architecture import FAMILIES, POSITIONS, TOKEN_TYPES, Encoder, encoder_of
from edge_svd.encoders.sentence_config import sentence_config
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.models import _file, _one_sentence, _tokenizer, add_parameters, hub_resolves, quiet
from edge_svd.quantize.rows import round_rows

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OpenedEncoder:
    """A dense encoder ready to be measured; `model` is a float32 `BertModel` in eval mode, without gradients."""

    name: str
    model: Any
    tokenizer: Any
    architecture: Encoder
    config_json: dict[str, Any] = field(repr=False)
    licence: bytes = field(repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every matrix in forward order; `model.get_submodule(site.name)` is its module."""
        return self.architecture.sites

    @cached_property
    def digest(self) -> str:
        """sha256 over the description and every parameter in float32, sorted by name."""
        result = hashlib.sha256(canonical_json(self.architecture.to_json()))
        add_parameters(result, self.model)
        return result.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 of the tokenizer's compact JSON."""
        return hashlib.sha256(companion_files.compact_tokenizer(self.tokenizer)).hexdigest()

    @cached_property
    def companions(self) -> Mapping[str, bytes]:
        """Name → content of the files that travel into the bundle beside the weights."""
        return encoder_files.companions(self.name, self.config_json, self.tokenizer, self.architecture, self.licence)

    def norms(self) -> dict[str, Array]:
        """What lies beside the matrices: fp32 norms and token types, and the positions as int8 rows with bf16 scales.

        The positions take 8 bits: they are few, and every passage looks up the first of them.
        """
        found = {
            f"{name}.{part}": self.model.get_parameter(f"{name}.{part}").numpy()
            for name in self.architecture.norms
            for part in ("weight", "bias")
        }
        table = self.model.get_parameter(f"{POSITIONS}.weight")[: self.architecture.max_position]
        q, scale = round_rows(table, 8)
        found[f"{POSITIONS}.q8"] = q.numpy()
        found[f"{POSITIONS}.s8"] = scale.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
        return found | {TOKEN_TYPES: self.model.get_parameter(TOKEN_TYPES).numpy()}

    def other_tensors(self) -> dict[str, Array]:
        """What a checkpoint holds beside the matrices: that."""
        return self.norms()


def encoder_family(name: str) -> bool:
    """Whether MODEL is a folder or hub id whose config.json names an encoder."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = path / "config.json"
    elif not name.strip() or name == demo.NAME or path.exists() or path.suffix.lower() == ".gguf":
        return False
    elif name[0] in "./~" or name.count("/") > 1:
        return False  # no hub id
    else:
        found = _hub_config(name)
    try:
        return companion_files.read_object(found).get("model_type") in FAMILIES
    except InputError:
        return False  # what is wrong with it is said where it is opened


def _hub_config(name: str) -> Path:
    """The config.json of a hub id, from the cache where the hub is out of reach; a path that does not exist if none."""
    from huggingface_hub import try_to_load_from_cache

    if hub_resolves():
        with quiet():
            return _file(name, None, "config.json")
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid hub id
        cached = None
    return Path(cached) if isinstance(cached, str) else Path("none")


def open_encoder(name: str) -> OpenedEncoder:
    """Open a folder or hub id; InputError, one sentence, if that cannot be done."""
    from transformers import AutoConfig, BertModel

    path = Path(name).expanduser()
    folder = path if path.is_dir() else None
    where = f"The model folder {name}" if folder else f"The model {name!r}"
    offline = folder is None and not hub_resolves()
    with quiet():
        with _one_sentence(f"{where} cannot be opened"):
            config = AutoConfig.from_pretrained(folder or name, trust_remote_code=False, local_files_only=offline)
        sentences = sentence_config(lambda file: _file(name, folder, file), where)
        architecture = encoder_of(config, pooling=sentences.pooling, max_tokens=sentences.max_tokens)
        tokenizer = _tokenizer(name, where, folder)
        sentences.check_case(tokenizer, where)
        if folder and not any(folder.glob("*.safetensors")):
            raise InputError(f"{where} has no safetensors files, which are the only weights that are read.")
        with _one_sentence(f"{where} cannot be opened"):
            model, loading = BertModel.from_pretrained(
                folder or name,
                output_loading_info=True,
                add_pooling_layer=False,
                dtype=torch.float32,
                use_safetensors=True,
                attn_implementation="sdpa",
            )
        odd = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        if odd:
            raise InputError(f"{where} lacks the tensor {odd[0]}, or holds it in another shape than config.json says.")
        model.eval().requires_grad_(False)
        for key, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise InputError(f"The tensor {key} of {name} holds NaN or infinite values.")
        highest = max(tokenizer.get_vocab().values(), default=-1)
        if highest >= architecture.vocab_size:
            raise InputError(
                f"The tokenizer of {name} has ids up to {highest}, but the model has {architecture.vocab_size} "
                "embeddings."
            )
        config_json = companion_files.read_object(_file(name, folder, "config.json"))
        licence_file = None if folder else _file(name, None, "LICENSE")
        licence = companion_files.read_licence(folder or (licence_file or Path("none")).parent)
        shown = folder.resolve().name if folder else name
        return OpenedEncoder(shown, model, tokenizer, architecture, config_json, licence)
