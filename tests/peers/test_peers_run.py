"""Workers started in turn, what is kept of them, and failures that stop nobody else; refusals of the script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rivals import contestants, environments, measure
from rivals.bandwidth import last_level_cache, read_bandwidth
from rivals.contestants import TOOLS, Contestant, Workplace, ours, rivals
from rivals.environments import Environment, cmake_arguments, last_words
from rivals.measure import Entrant, Kept, Setting, answer, once, rounds
from rivals.weights import initializers_read
from runtime_tiny import make_weights, write_bundle

from edge_svd.errors import BundleError, Failure, InputError

SCRIPT = Path(contestants.__file__).parents[1] / "peers.py"

WORKER = """
import json, sys
request = json.loads(sys.argv[1])
with open({log!r}, "a") as log:
    log.write(f"{{request['path'][-1]}} {{request['task']}} {{request['threads']}} {{request['batch']}}\\n")
print("a library's chatter")
if {fails!r} == request["task"]:
    print(json.dumps({{"error": "RuntimeError: no"}}))
else:
    print(json.dumps(
        {{"nll": 1.0, "perplexity": 2.0, "tokens": 3, "versions": {{}}, "peak_rss_bytes": 7, "decode_tokens_per_s": 9}}
    ))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def entrant(tmp_path: Path, log: Path) -> Any:
    def make(name: str, fails: str = "") -> Entrant:
        model = tmp_path / name
        model.write_bytes(b"12345")
        worker = tmp_path / f"run_{name}.py"
        worker.write_text(WORKER.format(log=str(log), fails=fails))
        contestant = Contestant(name, "torch", None, str(worker), lambda place: model)
        return Entrant(contestant, Path(sys.executable), model)

    return make


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


def test_rounds_go_over_everyone_in_turn(
    entrant: Any, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "bandwidth", lambda threads: 5.0 * threads)
    kept, failures = Kept(tmp_path / "kept.json"), {}
    everyone = [entrant("a"), entrant("b", fails="batch"), entrant("c", fails="speed")]
    rounds(everyone, kept, Setting(tmp_path, 4), 2, (1, 2), 4, failures)
    first = ["a speed 1 1", "b speed 1 1", "c speed 1 1", "a speed 2 1", "b speed 2 1", "a batch 2 4", "b batch 2 4"]
    second = ["a speed 1 1", "b speed 1 1", "a speed 2 1", "b speed 2 1", "a batch 2 4"]
    assert lines(log) == first + second
    assert failures == {"c": "c, speed: RuntimeError: no"}
    again = Kept(tmp_path / "kept.json")
    assert [set(turn) for turn in again.of("speed")["2"]["rounds"]] == [{"a", "b"}] * 2
    assert again.of("bandwidth")["2"]["bytes_per_s"] == [10.0, 10.0]
    batches = again.of("batch")["2"]
    assert batches["batch"] == 4 and batches["rounds"][0]["b"] == {"error": "b, batch: RuntimeError: no"}
    assert set(batches["rounds"][1]) == {"a"}


def test_scores_and_memory_are_taken_once_for_the_same_files(entrant: Any, tmp_path: Path, log: Path) -> None:
    kept, one, setting = Kept(tmp_path / "kept.json"), entrant("a"), Setting(tmp_path, 4)
    once(one, kept, setting, 2, runs=2)
    assert lines(log) == ["a score 2 1", "a memory 2 1", "a memory 2 1"]
    assert kept.of("memory")["a"]["peak_rss_bytes"] == [7, 7]
    once(one, Kept(tmp_path / "kept.json"), setting, 2, runs=2)
    assert len(lines(log)) == 3
    one.path.write_bytes(b"other length")
    once(one, kept, setting, 2, runs=1)
    assert lines(log)[3:] == ["a score 2 1", "a memory 2 1"]
    once(one, kept, Setting(tmp_path, 8), 2, runs=1)
    assert lines(log)[5:] == ["a score 2 1"]


@pytest.mark.parametrize("output", ["", "chatter", "[1]", "{"])
def test_no_answer_is_a_failure(output: str) -> None:
    with pytest.raises(Failure, match="x: the worker gave no answer"):
        answer(output, "x")


def test_last_words() -> None:
    assert last_words("Traceback\n  File\nValueError: this\n\n", 1) == "ValueError: this"
    assert last_words("", 3) == "exit code 3" and last_words("x", -4) == "ended by signal 4"
    with pytest.raises(Failure, match="what: ended by signal 9"):
        environments.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "what")
    with pytest.raises(Failure, match="what: No such file"):
        environments.run(["/nowhere/python"], "what")
    with pytest.raises(Failure, match="not done after 0 s"):
        environments.run([sys.executable, "-c", "import time; time.sleep(9)"], "what", timeout=0.1)


def test_an_environment_is_complete_when_its_modules_are_there(tmp_path: Path) -> None:
    (tmp_path / "env-x" / "bin").mkdir(parents=True)
    python = tmp_path / "env-x" / "bin" / "python"
    assert not Environment("x", (), ("json",)).ready(python)
    python.symlink_to(sys.executable)
    assert Environment("x", (), ("json",)).ensure(tmp_path) == python
    assert not Environment("x", (), ("json", "no_such_module")).ready(python)
    assert not Environment("x", (), ("no_such_module.part",)).ready(python)


def test_installing_is_venv_then_pip_and_fails_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], what: str, environment: dict[str, str] | None = None) -> str:
        asked.append(command)
        if what == "pip install second third":
            assert environment is not None and environment["CMAKE_ARGS"] == cmake_arguments()
            raise Failure(f"{what}: no network")
        return ""

    monkeypatch.setattr(environments, "run", run)
    monkeypatch.setenv("TORCH_ARGS", "--index-url https://example.org/cpu")
    with pytest.raises(Failure, match="pip install second third: no network"):
        Environment("x", ((environments.TORCH,), ("second", "third")), ("nothing",)).ensure(tmp_path)
    folder = tmp_path / "env-x"
    venv, torch, others = asked
    assert venv == [sys.executable, "-m", "venv", "--clear", str(folder)]
    assert torch[0] == str(folder / "bin" / "python") and "--index-url" in torch and "--index-url" not in others
    with pytest.raises(Failure, match="lacks nothing after installing"):
        Environment("x", (("first",),), ("nothing",)).ensure(tmp_path)


def test_ggml_is_built_for_this_processor_without_amx() -> None:
    found = cmake_arguments(frozenset({"avx2", "fma", "f16c", "avx512f", "amx_int8"}))
    assert found == "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
    assert cmake_arguments(frozenset()) == "-DGGML_NATIVE=ON"


def test_half_made_conversions_never_count(tmp_path: Path) -> None:
    place = Workplace(tmp_path, tmp_path / "out")

    def broken(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise Failure("stopped")

    with pytest.raises(Failure):
        place.made("deep/thing", broken)
    assert not (tmp_path / "out/deep/thing").exists()
    made = place.made("deep/thing", lambda path: path.mkdir())
    assert list(made.iterdir()) == [] and place.made("deep/thing", broken) == made


def test_bytes_are_weights_and_graph_and_all_of_ours(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 3), ("model.onnx.data", 50), ("tokenizer.json", 7)):
        (tmp_path / name).write_bytes(b"x" * size)
    made = Contestant("x", "genai", None, "w", lambda place: tmp_path, ("*.onnx", "*.onnx.data"))
    assert made.bytes(tmp_path) == 53 and made.bytes(tmp_path / "model.onnx") == 3
    assert Contestant("x", "edge-svd", None, "w", lambda place: tmp_path).bytes(tmp_path) == 60
    assert Contestant("x", "torch", None, "w", lambda place: tmp_path, ("*.data",), share=0.5).bytes(tmp_path) == 25


def test_every_tool_has_its_contestants(tiny_model: Path) -> None:
    everyone = rivals(tiny_model, TOOLS)
    assert {one.tool for one in everyone} == set(TOOLS) and len({one.name for one in everyone}) == len(everyone)
    assert all(one.script.is_file() for one in everyone)
    assert [one.name for one in rivals(tiny_model, ["openvino"])] == ["OpenVINO int8", "OpenVINO int4 g64"]
    with pytest.raises(InputError, match="'mlx'"):
        rivals(tiny_model, ["mlx"])


def test_bundles_are_named_and_checked(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "88MB", make_weights())
    (found,) = ours([folder])
    assert found.name == "edge-svd 88MB" and found.prepare(Workplace(tmp_path, tmp_path)) == folder
    before = found.fingerprint(folder)
    manifest = json.loads((folder / "edge_svd.json").read_text())
    (folder / "edge_svd.json").write_text(json.dumps(manifest, indent=0)[:-1] + "}")
    assert found.fingerprint(folder) != before
    with pytest.raises(InputError, match="88MB"):
        ours([folder, folder])
    with pytest.raises(BundleError):
        ours([tmp_path])


def test_weights_that_a_token_reads() -> None:
    tensor = onnx.numpy_helper.from_array
    parts = {
        "table": np.zeros((100, 8), np.float32),
        "tied": np.zeros((10, 4), np.uint8),
        "scales": np.zeros(10, np.float32),
        "matrix": np.zeros((8, 5), np.float32),
        "unread": np.zeros(1000, np.float32),
    }
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["a"]),
        onnx.helper.make_node("GatherBlockQuantized", ["tied", "ids", "scales"], ["b"]),
        onnx.helper.make_node("MatMulNBits", ["b", "tied", "scales"], ["c"]),
        onnx.helper.make_node("MatMul", ["a", "matrix"], ["d"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], [tensor(value, name) for name, value in parts.items()])
    assert initializers_read(onnx.helper.make_model(graph)) == 40 + 40 + 160


def test_memory_bandwidth(tmp_path: Path) -> None:
    assert read_bandwidth(2, 2**22, passes=2) > 1e6
    for index, size in (("index0", "48K"), ("index3", "32M"), ("index4", "?")):
        (tmp_path / index).mkdir()
        (tmp_path / index / "size").write_text(size + "\n")
    assert last_level_cache(tmp_path) == 32 * 2**20
    assert last_level_cache(tmp_path / "none") == 0


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, env=environment
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and all(word in done.stderr for word in words)


def test_wrong_input_is_refused_in_one_sentence(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    text = ("--text", str(tiny_text_file), *out)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_bytes())
    refused(peers("--model", str(tmp_path / "none"), *text), "not a folder")
    refused(peers("--model", str(tmp_path), *text), "config.json")
    refused(peers("--model", str(folder), *text, "--rivals", "torch,foo"), "'foo'", "llama.cpp")
    refused(peers("--model", str(folder), *text, "--threads", "1,0"), "--threads")
    refused(peers("--model", str(folder), "--text", str(tmp_path / "none.txt"), *out), "does not exist")
    (folder / "model.safetensors").rename(folder / "model.other")
    refused(peers("--model", str(folder), *text), "safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    refused(peers("--model", str(folder), *text), "'gpt2'")
    assert not (tmp_path / "out").exists()


def test_out_belongs_to_one_model_and_text(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", make_weights())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inputs.json").write_text('{"model": "another", "text": "another"}')
    arguments = ("--model", str(tiny_model), "--text", str(tiny_text_file), "--out", str(tmp_path / "out"))
    refused(peers(*arguments, "--bundles", str(bundle)), "another model")
    (tmp_path / "out" / "inputs.json").unlink()
    short = tmp_path / "short.txt"
    short.write_text("The river.")
    refused(peers(*arguments[:2], "--text", str(short), *arguments[4:], "--quick"), "tokens")


def test_how_threads_wait_is_each_runtime_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = contestants.worker_environment()
    assert "OMP_WAIT_POLICY" not in environment and "PYTHONPATH" not in environment and "PATH" in environment
