"""Who takes part, and how each one's model is made from the same Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.files import sha256_file
from edge_svd.runtime.bundle import open_bundle
from rivals.environments import ENVIRONMENTS, run
from rivals.write_gguf import write_gguf

HERE = Path(__file__).parent
TOOLS = ("llama.cpp", "genai", "onnxruntime", "openvino", "optimum", "torch")
GGUF_KINDS = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
REFERENCE = "torch fp32"


@dataclass(frozen=True)
class Workplace:
    """The model's folder, and the folder that keeps everything made."""

    model: Path
    out: Path

    def python(self, environment: str | None) -> Path:
        """The interpreter of an environment, installed where it is missing; None is our own. Failure as `ensure`."""
        return Path(sys.executable) if environment is None else ENVIRONMENTS[environment].ensure(self.out)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """OUT/name, by `make(path)` where it is not there; a half made one never gets that name."""
        target = self.out / name
        if not target.exists():
            print(f"Making {target} …", file=sys.stderr, flush=True)
            partial = target.with_name(f"{target.name}.partial")
            discard(partial)
            partial.parent.mkdir(parents=True, exist_ok=True)
            make(partial)
            os.replace(partial, target)
        return target


@dataclass(frozen=True)
class Contestant:
    """One model in one runtime.

    `prepare` makes its files and returns the path that the worker opens; `files` are the patterns of weights and graph
    below it (none: the path itself, or the whole folder of ours); `share` of their bytes is what is held as weights.
    """

    name: str
    tool: str
    environment: str | None
    worker: str
    prepare: Callable[[Workplace], Path]
    files: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    note: str = ""

    @property
    def ours(self) -> bool:
        return self.tool == "edge-svd"

    @property
    def script(self) -> Path:
        return HERE / self.worker

    def bytes(self, path: Path) -> int:
        """Weights and graph; of ours, everything in the folder."""
        if path.is_file():
            return path.stat().st_size
        found = [file for pattern in self.files or ("*",) for file in path.glob(pattern) if file.is_file()]
        return round(self.share * sum(file.stat().st_size for file in found))

    def fingerprint(self, path: Path) -> str:
        """Of what was measured: a kept measurement counts for the same files alone."""
        manifest = path / "edge_svd.json"
        return f"{self.bytes(path)} {sha256_file(manifest) if manifest.is_file() else ''}".strip()


def rivals(model: Path, tools: Sequence[str]) -> list[Contestant]:
    """All of the named tools; InputError on an unknown one."""
    for tool in tools:
        if tool not in TOOLS:
            raise InputError(f"There is no rival {tool!r}; there are {', '.join(TOOLS)}.")
    config = json.loads((model / "config.json").read_bytes())
    head = {"head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]}
    graph = ("*.onnx", "*.onnx.data", "*.onnx_data")
    everyone = [
        *(
            Contestant(f"llama.cpp {kind}", "llama.cpp", "llama.cpp", "run_llama_cpp.py", _gguf(kind))
            for kind in GGUF_KINDS
        ),
        *(
            Contestant(name, "genai", "genai", "run_genai.py", _genai(*arguments), graph, note=ALL_POSITIONS)
            for name, arguments in GENAI.items()
        ),
        Contestant(
            "onnxruntime on the GenAI int4 file, IO binding",
            "onnxruntime",
            "genai",
            "run_onnxruntime.py",
            _genai("genai-int4", "int4"),
            graph,
            head,
            note=ALL_POSITIONS,
        ),
        *(
            Contestant(
                name, "openvino", "openvino", "run_openvino.py", _openvino(bits), ("openvino_model.*",), note=OPENVINO
            )
            for name, bits in (("OpenVINO int8", 8), ("OpenVINO int4 g64", 4))
        ),
        Contestant("Optimum ONNX fp32", "optimum", None, "run_optimum.py", _optimum, graph, note=ALL_POSITIONS),
        *(
            Contestant(
                name,
                "torch",
                None,
                "run_torch.py",
                lambda place: place.model,
                ("*.safetensors",),
                {"precision": precision},
                share,
            )
            for name, precision, share in ((REFERENCE, "float32", 1.0), ("torch bf16", "bfloat16", 0.5))
        ),
    ]
    return [contestant for contestant in everyone if contestant.tool in tools]


ALL_POSITIONS = "computes the logits of every position of a prompt, as its exporter makes the graph"
OPENVINO = (
    "the vocabulary's product is cut to a prompt's last position, as OpenVINO GenAI does; its own default precisions"
)
GENAI = {
    "ORT-GenAI int8": ("genai-int8", "int8"),
    "ORT-GenAI int4, k_quant_mixed": ("genai-int4-k-quant-mixed", "int4", "algo_config=k_quant_mixed"),
    "ORT-GenAI int4, default": ("genai-int4", "int4"),
}


def ours(bundles: Sequence[Path]) -> list[Contestant]:
    """Finished bundles, named after their folders; BundleError on a damaged one, InputError on two of one name."""
    found: dict[str, Contestant] = {}
    for bundle in bundles:
        open_bundle(bundle, check_digests=False)
        name = f"edge-svd {bundle.resolve().name}"
        if name in found:
            raise InputError(f"Two bundles are called {bundle.resolve().name}; rename one.")
        found[name] = Contestant(name, "edge-svd", None, "run_edge_svd.py", lambda place, path=bundle: path)
    return list(found.values())


def fitted(place: Workplace, sizes: Sequence[str]) -> list[Path]:
    """A fit of the model at each size, with default calibration, under OUT/bundles."""
    made = []
    for size in sizes:

        def fit(partial: Path, size: str = size) -> None:
            command = [
                sys.executable,
                "-m",
                "edge_svd.cli",
                "fit",
                str(place.model),
                "--size",
                size,
                "-o",
                str(partial),
            ]
            run(command, f"edge-svd fit --size {size}", timeout=6 * 3600)

        made.append(place.made(f"bundles/{size}", fit))
    return made


def discard(path: Path) -> None:
    """What an interrupted conversion left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _gguf(kind: str) -> Callable[[Workplace], Path]:
    def prepare(place: Workplace) -> Path:
        python = place.python("llama.cpp")
        source = place.made("llama.cpp/f32.gguf", lambda path: write_gguf(place.model, path))
        script = str(HERE / "quantize_gguf.py")
        return place.made(
            f"llama.cpp/{kind}.gguf",
            lambda path: _convert([str(python), script, str(source), str(path), kind], f"quantising to {kind}"),
        )

    return prepare


def _genai(name: str, precision: str, *extra: str) -> Callable[[Workplace], Path]:
    def prepare(place: Workplace) -> Path:
        command = [str(place.python("genai")), "-m", "onnxruntime_genai.models.builder", "-i", str(place.model)]
        settings = ["-p", precision, "-e", "cpu", "-c", str(place.out / "genai-cache")]
        more = ["--extra_options", *extra] if extra else []
        return place.made(
            name, lambda path: _convert([*command, "-o", str(path), *settings, *more], f"building {name}")
        )

    return prepare


def _openvino(bits: int) -> Callable[[Workplace], Path]:
    def prepare(place: Workplace) -> Path:
        command = [str(place.python("openvino")), str(HERE / "convert_openvino.py"), str(place.model)]
        return place.made(
            f"openvino-int{bits}",
            lambda path: _convert([*command, str(path), str(bits)], f"exporting OpenVINO in {bits} bits"),
        )

    return prepare


def _optimum(place: Workplace) -> Path:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "onnx", "--model", str(place.model)]
    task = ["--task", "text-generation-with-past"]
    return place.made("optimum", lambda path: _convert([*command, *task, str(path)], "exporting with Optimum"))


def _convert(command: list[str], what: str) -> None:
    run(command, what, worker_environment())


def worker_environment() -> dict[str, str]:
    """Scripts find their neighbours, nothing is fetched, nothing of ours leaks into another's environment.

    Threads wait as each runtime has them do: OMP_WAIT_POLICY=passive alone makes llama.cpp decode four times slower.
    """
    left_out = ("PYTHONSAFEPATH", "PYTHONPATH", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return inherited | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
