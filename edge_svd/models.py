"""Open a model from wherever it is: a hub id, a folder, a GGUF file, or the demonstration.

The result is a transformers model in float32 without gradients, its tokenizer, our own description of its
architecture, and digests that depend on the numbers and not on how the source stored them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edge_svd import companions as companion_files
from edge_svd import demo
from edge_svd.architectures import Architecture, Site, architecture_of, norms_of, sites_of
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.gguf_file import GgufFile
from edge_svd.gguf_model import FAMILIES, gguf_config, gguf_tokenizer, gguf_weights
from edge_svd.rotary import GLOBAL, LOCAL

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class OpenedModel:
    """A dense model ready to be measured; `model` is float32, in eval mode, without gradients."""

    name: str
    model: Any
    tokenizer: Any
    architecture: Architecture
    config_json: dict[str, Any] = field(repr=False)
    generation_json: dict[str, Any] = field(repr=False)
    licence: bytes = field(repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every matrix in forward order; `model.get_submodule(site.name)` is its module."""
        return sites_of(self.architecture)

    @cached_property
    def digest(self) -> str:
        """sha256 over the architecture, the rotary tables and every parameter in float32, sorted by name."""
        result = hashlib.sha256(canonical_json(self.architecture.to_json()))
        for key, table in sorted(self.rotary().items()):
            result.update(f"rotary.{key} {table.shape}\n".encode() + table.tobytes())
        add_parameters(result, self.model)
        return result.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 of the tokenizer's compact JSON."""
        return hashlib.sha256(companion_files.compact_tokenizer(self.tokenizer)).hexdigest()

    @cached_property
    def companions(self) -> Mapping[str, bytes]:
        """Name → content of the files that travel into the bundle beside the weights."""
        return companion_files.companions(
            self.name, self.config_json, self.generation_json, self.tokenizer, self.architecture, self.licence
        )

    def norms(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Name → effective norm weight, fp32: Gemma stores w and multiplies by 1 + w, and 1 + w is what this
        returns.
        """
        offset = np.float32(1.0 if self.architecture.family.startswith("gemma") else 0.0)
        return {name: self.model.get_parameter(name).float().numpy() + offset for name in norms_of(self.architecture)}

    def positions(self) -> dict[str, np.ndarray[Any, np.dtype[np.float16]]]:
        """Name → table of learned positions, fp16 [max_position, hidden], row 0 that of position 0; empty without one.

        InputError for a table that halves cannot hold.
        """
        names = self.architecture.layout
        if not self.architecture.learned_positions:
            return {}
        name = f"{names.positions}.weight"
        table = self.model.get_parameter(name)[names.first_position :].float().numpy()
        if np.abs(table).max() > np.finfo(np.float16).max:
            raise InputError(f"The tensor {name} of {self.name} holds values beyond ±65504, which halves cannot hold.")
        return {name: table.astype(np.float16)}

    def other_tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a checkpoint holds beside the matrices: norms, learned positions, rotary frequencies."""
        tables = {f"rotary.{key}.inv_freq": table for key, table in self.rotary().items()}
        return {**self.norms(), **self.positions(), **tables}

    def rotary(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Key of `Architecture.layer_ropes` → inverse frequencies, fp32 [rotary_dim / 2]."""
        used = sorted(set(self.architecture.layer_ropes) - {""})
        if not used:
            return {}
        base = self.model.get_submodule(self.architecture.layout.body)
        tables = {GLOBAL: base.rotary_emb}
        prefix = {GLOBAL: "", LOCAL: ""}
        if LOCAL in self.architecture.layer_ropes:
            if hasattr(base, "rotary_emb_local"):  # transformers 4 has two modules, 5 has two buffers in one
                tables[LOCAL] = base.rotary_emb_local
            else:
                tables, prefix = (
                    dict.fromkeys((GLOBAL, LOCAL), base.rotary_emb),
                    {GLOBAL: "full_attention_", LOCAL: "sliding_attention_"},
                )
        return {key: getattr(tables[key], f"{prefix[key]}inv_freq").float().numpy().copy() for key in used}


def add_parameters(digest: Any, model: Any) -> None:
    """Every parameter of a torch model into a hash, sorted by name: its name, its shape, its numbers."""
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().float().contiguous().numpy().reshape(-1).view(np.uint8).data)


def open_model(name: str) -> OpenedModel:
    """Open `smollm2-demo`, a `.gguf` file, a local folder or a hub id; InputError, one sentence, if that cannot be
    done.
    """
    with quiet():
        if name == demo.NAME:
            return _open_gguf(demo.demo_model(), demo.MODEL)
        if not name.strip():
            raise InputError("The name of the model is empty; give a folder, a .gguf file, a hub id or smollm2-demo.")
        path = Path(name).expanduser()
        if path.suffix.lower() == ".gguf":
            if not path.is_file():
                raise InputError(f"The GGUF file {name} does not exist.")
            return _open_gguf(path, path.stem)
        if path.is_dir():
            return _open_transformers(str(path), path.resolve().name, path)
        if path.exists():
            raise InputError(f"{name} is neither a model folder nor a .gguf file.")
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise InputError(f"There is no model folder {name!r}.")
        return _open_transformers(name, name, None)


def _open_gguf(path: Path, name: str) -> OpenedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = GgufFile.open(path)
    if not isinstance(family := file.metadata.get("general.architecture"), str):
        raise InputError(f"The GGUF file {path} names no architecture, so it is not a language model.")
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if family in FAMILIES:
        config = gguf_config(file)
        architecture = architecture_of(config)
        with _no_initialisation():
            model = AutoModelForCausalLM.from_config(config, attn_implementation=_attention(architecture))
        gguf_weights(file, model)
    else:
        with _one_sentence(f"The GGUF file {path} cannot be opened"):
            config = AutoConfig.from_pretrained(**place)
        architecture = architecture_of(config)
        with _one_sentence(f"The GGUF file {path} cannot be opened"):
            model = AutoModelForCausalLM.from_pretrained(**place, **_loading(architecture))
        model.config.__dict__.pop("quantization_config", None)
    tokenizer = gguf_tokenizer(file)
    if tokenizer is None:
        with _one_sentence(f"The tokenizer of the GGUF file {path} cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(**place)
    roles = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {role: getattr(config, role) for role in roles if getattr(config, role, None) is not None}
    licence = companion_files.read_licence(path.parent)
    return _opened(name, model, tokenizer, architecture, companion_files.source_config(config), generation, licence)


def _open_transformers(source: str, name: str, folder: Path | None) -> OpenedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edge_svd.streaming.choice import streams
    from edge_svd.streaming.mapped_files import MappedFiles
    from edge_svd.streaming.on_demand import streamed_model

    where = f"The model folder {source}" if folder else f"The model {source!r}"
    if folder and not (folder / "config.json").is_file():
        raise InputError(f"{where} has no config.json.")
    hint = "" if folder else " as a local folder or from the Hugging Face hub; check the name, the network and HF_TOKEN"
    offline = folder is None and not hub_resolves()
    with _one_sentence(f"{where} cannot be opened{hint}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=offline)
    architecture = architecture_of(config)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{where} is already quantised; give the original with bf16, fp16 or fp32 weights.")
    tokenizer = _tokenizer(source, where, folder)
    if folder and not any(folder.glob("*.safetensors")):
        found = "only pickled weights, which are never read" if any(folder.glob("*.bin")) else "no weights"
        raise InputError(f"{where} has {found}; safetensors files are needed.")
    files = MappedFiles(_weight_files(source, where, folder))
    if streams(files.numbers):

        def empty() -> Any:
            with _one_sentence(f"{where} cannot be opened"):
                attention = _attention(architecture)
                return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)

        model = streamed_model(empty, files, architecture.layout, where)
    else:
        model = _in_memory(source, where, architecture)
    config_json = companion_files.read_object(_file(source, folder, "config.json"))
    generation = companion_files.read_object(_file(source, folder, "generation_config.json"))
    licence_file = _file(source, folder, "LICENSE") if folder is None else None
    licence = companion_files.read_licence(folder or (licence_file or Path("none")).parent)
    return _opened(name, model, tokenizer, architecture, config_json, generation, licence)


def _in_memory(source: str, where: str, architecture: Architecture) -> Any:
    from transformers import AutoModelForCausalLM

    with _one_sentence(f"{where} cannot be opened"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **_loading(architecture)
        )
    odd = sorted(
        str(key[0] if isinstance(key, tuple) else key)
        for key in {*loading["missing_keys"], *loading["mismatched_keys"]}
    )
    if odd:
        raise InputError(f"{where} lacks the tensor {odd[0]}, or holds it in another shape than its config.json says.")
    return model


def _weight_files(source: str, where: str, folder: Path | None) -> list[Path]:
    """The safetensors files that transformers would read, fetched where the source is on the hub."""
    index = _file(source, folder, "model.safetensors.index.json")
    if index.is_file():
        listed = companion_files.read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise InputError(f"The file {index} does not say which tensors lie in which file.")
        names = sorted(set(listed.values()))
    elif folder and not (folder / "model.safetensors").is_file():
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    else:
        names = ["model.safetensors"]
    found = [_file(source, folder, name) for name in names]
    for name, file in zip(names, found, strict=True):
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{where} lacks the file {name}, in which some of its weights should lie.")
    return found


def _opened(
    name: str,
    model: Any,
    tokenizer: Any,
    architecture: Architecture,
    config: dict[str, Any],
    generation: dict[str, Any],
    licence: bytes,
) -> OpenedModel:
    import torch

    from edge_svd.conv1d import without_conv1d
    from edge_svd.streaming.on_demand import compute_on_demand, is_streamed

    without_conv1d(model, copy=not is_streamed(model)).eval().requires_grad_(False)
    if is_streamed(model):
        compute_on_demand(model, architecture.layout)
    for parameter_name, parameter in model.named_parameters():
        # the sum is finite unless an entry is not, or finite entries overflow: only then is every entry looked at
        if not torch.isfinite(parameter.sum()) and not torch.isfinite(parameter).all():
            raise InputError(f"The tensor {parameter_name} of {name} holds NaN or infinite values.")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= architecture.vocab_size:
        raise InputError(
            f"The tokenizer of {name} has ids up to {highest}, but the model has {architecture.vocab_size} embeddings."
        )
    ends = generation.get("eos_token_id")
    if ends is not None:
        architecture = replace(architecture, eos_token_ids=(ends,) if isinstance(ends, int) else tuple(ends))
        architecture = Architecture.from_json(architecture.to_json())
    return OpenedModel(name, model, tokenizer, architecture, config, generation, licence)


def _tokenizer(source: str, where: str, folder: Path | None) -> Any:
    from transformers import AutoTokenizer

    if folder and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            f"{where} has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}); copy the model's tokenizer files into it."
        )
    with _one_sentence(f"The tokenizer of {source} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"The tokenizer of {source} has no tokenizer.json form, which the device side needs.")
    return tokenizer


def hub_resolves() -> bool:
    """Whether the hub's name resolves; without this, an unreachable hub costs half a minute of retries."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _loading(architecture: Architecture) -> dict[str, Any]:
    import torch

    return {
        "dtype": torch.float32,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": _attention(architecture),
    }


def _attention(architecture: Architecture) -> str:
    """transformers' fused attention drops the soft cap in silence."""
    return "eager" if architecture.attention_softcap else "sdpa"


def _file(source: str, folder: Path | None, name: str) -> Path:
    """A small file of the source; a path that does not exist if the source lacks it."""
    if folder:
        return folder / name
    from transformers.utils import cached_file

    found = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found or "none")


@contextlib.contextmanager
def _one_sentence(prefix: str) -> Iterator[None]:
    """Turn whatever a library raises while reading a source into one InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{prefix} ({reason.rstrip('.')[:300]}).") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, advice or warnings from the libraries; their settings are put back afterwards."""
    from transformers.utils import logging as transformers_logging

    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.CRITICAL)
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        os.environ.pop("TQDM_DISABLE") if before is None else os.environ.__setitem__("TQDM_DISABLE", before)


def _no_initialisation() -> Any:
    """A context in which new modules keep whatever their memory holds: every parameter is overwritten from the file."""
    from torch.overrides import TorchFunctionMode

    class NoInitialisation(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            keywords = keywords or {}
            if getattr(function, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"):
                return arguments[0] if arguments else keywords["tensor"]
            return function(*arguments, **keywords)

    return NoInitialisation()
