"""The rivals' own Python environments: made by venv and pip, each in OUT/env-NAME, once."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_svd.errors import Failure

TORCH = "torch==2.13.0"

INSTRUCTIONS = {
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
}
"""ggml's name of a set of instructions → the processor's flag."""


@dataclass(frozen=True)
class Environment:
    """`steps`: the packages of one pip call after another. `modules` can be imported once it is complete."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    modules: tuple[str, ...]

    def ready(self, python: Path) -> bool:
        """Whether every module can be found there."""
        if not python.exists():
            return False
        look = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {list(self.modules)!r})))"
        return subprocess.run([str(python), "-c", look], capture_output=True).returncode == 0

    def ensure(self, out: Path) -> Path:
        """Its interpreter, installed first where it is not complete; Failure with pip's last words."""
        folder = out / f"env-{self.name}"
        python = folder / "bin" / "python"
        if self.ready(python):
            return python
        print(f"Installing {self.name} into {folder} …", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)], f"venv for {self.name}")
        environment = os.environ | {"CMAKE_ARGS": cmake_arguments(), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
        for packages in self.steps:
            extra = shlex.split(os.environ.get("TORCH_ARGS", "")) if TORCH in packages else []
            command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages, *extra]
            run(command, f"pip install {' '.join(packages)}", environment)
        if not self.ready(python):
            raise Failure(f"The environment of {self.name} lacks {' or '.join(self.modules)} after installing.")
        return python


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("llama.cpp", (("llama-cpp-python",),), ("llama_cpp",)),
        Environment(
            "genai",
            (
                (TORCH,),
                (
                    "onnxruntime-genai>=0.18",
                    "onnx",
                    "onnx-ir",
                    "transformers>=5",
                    "sentencepiece",
                    "protobuf",
                    "safetensors",
                ),
            ),
            ("onnxruntime_genai", "torch", "transformers", "onnx_ir", "tokenizers"),
        ),
        Environment(
            "openvino",
            ((TORCH,), ("optimum-intel[openvino]>=2.2", "openvino>=2026.4", "nncf>=3.4")),
            ("openvino", "optimum.intel", "nncf", "tokenizers"),
        ),
    )
}


def cmake_arguments(flags: frozenset[str] | None = None) -> str:
    """How ggml is built: for the instructions this processor has, but never for AMX, with which builds have crashed."""
    have = processor_flags() if flags is None else flags
    if not have:
        return "-DGGML_NATIVE=ON"  # no x86: there is no AMX to keep out
    return " ".join(
        ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name, flag in INSTRUCTIONS.items() if flag in have)]
    )


def processor_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Of an x86 processor; none where the system does not list them."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def run(command: list[str], what: str, environment: dict[str, str] | None = None, timeout: float = 3600) -> str:
    """Standard output of a command that succeeds; Failure with the last line of its standard error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"{what}: not done after {timeout:.0f} s") from None
    except OSError as error:
        raise Failure(f"{what}: {error.strerror or error}") from None
    if done.returncode != 0:
        raise Failure(f"{what}: {last_words(done.stderr, done.returncode)}")
    return done.stdout


def last_words(errors: str, code: int) -> str:
    """The last line that says something, or what ended the process."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"
