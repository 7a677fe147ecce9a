"""Models whose weights stay in their files: the same numbers as in memory, resumed after a kill, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_svd.calibrate import walked
from edge_svd.calibrate.collect import Estimator
from edge_svd.calibrate.run import calibrate, statistics_key
from edge_svd.compare.component_changes import component_changes
from edge_svd.errors import Failure, InputError
from edge_svd.fit import fit
from edge_svd.models import OpenedModel, open_model
from edge_svd.opening import open_decoder
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.steps import Calibration, Planning
from edge_svd.streaming import choice, walk
from edge_svd.streaming.choice import VARIABLE, streams
from edge_svd.streaming.mapped_files import MappedFiles
from edge_svd.streaming.on_demand import is_streamed
from tests.tiny_folder import tiny_folder, tiny_text

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "gemma3_text": {"sliding_window": 16, "num_hidden_layers": 3},
    "qwen2": {"tie_word_embeddings": False},
}
WINDOWS, WINDOW = 9, 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SVD_CACHE", str(tmp_path / "cache"))


def folder_of(path: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A tiny model whose weights are stored in `dtype`."""
    tiny_folder(path, family, **(FAMILIES[family] | changes))
    file = path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return path


def opened(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> OpenedModel:
    monkeypatch.setenv(VARIABLE, how)
    found = open_model(str(folder))
    assert is_streamed(found.model) == (how == "always")
    return found


def taken(model: OpenedModel, out: Path, estimator: Estimator) -> dict[str, str]:
    """File → digest of all statistics of a model on random tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.architecture.vocab_size, (WINDOWS, WINDOW), generator=generator)
    key = statistics_key(model.digest, model.tokenizer_digest, "text", (WINDOWS, WINDOW), 0, estimator)
    calibrate(model.model, model.architecture, ids, key, out, estimator)
    return digests(out)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_the_model_in_memory(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "model", family, dtype)
    for name, estimator in {
        "sampled": Estimator(),
        "more": Estimator(samples=2, weighted=False),
        "top": Estimator(kind="top-k", k=3),
        "half": Estimator(precision="bfloat16"),
    }.items():
        made = [taken(opened(folder, how, monkeypatch), tmp_path / name / how, estimator) for how in choice.CHOICES]
        assert made[0] == made[1]


@pytest.mark.parametrize("steps", [3, 20, 30, 47, 55, 70, 77, 200])
def test_a_killed_walk_goes_on_to_the_same_bytes(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder_of(tmp_path / "model"), "always", monkeypatch)
    whole = taken(model, tmp_path / "whole", Estimator())
    left, write = steps, walk.Spill.write

    class Killed(BaseException):
        pass

    def counting(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(walk.Spill, "write", counting)
    out, kills = tmp_path / "killed", 0
    while True:
        try:
            assert taken(model, out, Estimator()) == whole
            break
        except Killed:
            kills, left = kills + 1, 0
            for folder in [file for file in (out / "partial").iterdir() if file.is_dir()]:
                (folder / ".tmpAbCdEf").touch()  # as safetensors leaves one when it is killed while it writes
    assert kills == (1 if steps < 200 else 0)


def test_a_kill_between_collecting_and_finishing_a_layer_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folder_of(tmp_path / "model"), "always", monkeypatch)
    whole = taken(model, tmp_path / "whole", Estimator())
    finish, out = walk.Spill.finish, tmp_path / "killed"

    def failing(spill: walk.Spill) -> None:
        if not (tmp_path / spill.path.name).exists():
            (tmp_path / spill.path.name).touch()
            raise KeyboardInterrupt
        finish(spill)

    monkeypatch.setattr(walk.Spill, "finish", failing)
    for _ in range(40):
        try:
            assert taken(model, out, Estimator()) == whole
            return
        except KeyboardInterrupt:
            pass
    pytest.fail("it never ends")


def test_a_fit_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model", num_hidden_layers=3)
    (tmp_path / "text.txt").write_text(tiny_text())
    calibration = Calibration(sources=(str(tmp_path / "text.txt"),), windows=9, window=48)
    made = []
    for how in choice.CHOICES:
        monkeypatch.setenv(VARIABLE, how)
        monkeypatch.setenv("EDGE_SVD_CACHE", str(tmp_path / f"cache-{how}"))
        fit(str(folder), tmp_path / how, 230_000, calibration, Planning())
        found = digests(tmp_path / how)
        del found["measurements.json"]  # times
        made.append(found)
        assert list((tmp_path / f"cache-{how}").glob("scratch/*")) == []
    assert made[0] == made[1]


def test_the_divergence_and_its_replaced_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model")
    ids = torch.arange(80).reshape(2, 40)
    found = []
    for how in choice.CHOICES:
        model = opened(folder, how, monkeypatch)
        kl = HeldOutKl(model.model, ids, model.architecture)
        site = model.model.get_submodule("model.layers.1.mlp.down_proj")
        before = site.weight.data
        site.weight.data = before.float() * 0.9
        found.append(kl.measure())
        site.weight.data = before
        assert kl.measure() < 1e-4  # the dense side is kept in halves
    assert found[0] == found[1] > 1e-3


def test_what_needs_all_weights_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model")
    model = opened(folder, "always", monkeypatch)
    with pytest.raises(InputError, match="gradients through the whole model"):
        component_changes(model, {}, torch.zeros(1, 8, dtype=torch.int64), lambda done, total: None)
    with pytest.raises(InputError, match="leave out --rotate"):
        open_decoder(str(folder), rotate=True)
    assert model.model.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.bfloat16


def test_faults_of_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model")
    file, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    whole = load_file(file)
    monkeypatch.setenv(VARIABLE, "always")

    def refused(tensors: dict[str, torch.Tensor], words: str) -> None:
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(InputError, match=words):
            open_model(str(folder))

    refused({n: t for n, t in whole.items() if n != name}, f"lacks the tensor {name}")
    refused(whole | {name: whole[name][:-1]}, "up_proj.weight as")
    refused(whole | {name: whole[name].to(torch.int8)}, "of type I8")
    refused(whole | {name: torch.full_like(whole[name], torch.nan)}, "NaN or infinite")
    save_file(whole, file, {"format": "pt"})
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(InputError, match="cannot be opened"):
        open_model(str(folder))
    file.write_bytes(content)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(InputError, match="lacks the file"):
        open_model(str(folder))


def test_tensors_of_one_name_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="lies in both"):
        MappedFiles([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert torch.equal(MappedFiles([tmp_path / "a.safetensors"]).tensor("w").float(), torch.ones(3))


def test_nan_on_the_way_names_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model", dtype=torch.float32)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e30
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Failure, match=r"layers\.0\.mlp\.down_proj|layers\.1"):
        taken(opened(folder, "always", monkeypatch), tmp_path / "out", Estimator())


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder_of(tmp_path / "model"), "always", monkeypatch)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(walked.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="make room"):
        taken(model, tmp_path / "out", Estimator())


def test_the_choice_follows_memory_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(choice, "memory_at_hand", lambda: 16000)
    assert [streams(numbers) for numbers in (1000, 1001)] == [False, True]
    monkeypatch.setattr(choice, "memory_at_hand", lambda: None)
    assert not streams(10**15)
    monkeypatch.setenv(VARIABLE, "always")
    assert streams(1)
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(InputError, match="always or never"):
        streams(1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory are read from /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """400 MB of bfloat16, twice that in fp32, statistics of the same order: within 300 MB of the start, by limit."""
    folder = folder_of(
        tmp_path / "model",
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=48,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
    )
    weights = (folder / "model.safetensors").stat().st_size
    script = """
import re, resource, sys
from pathlib import Path
import torch, transformers.models.llama.modeling_llama
from edge_svd.calibrate.run import calibrate, statistics_key
from edge_svd.calibrate.collect import Estimator
from edge_svd.models import open_model
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
start = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (start + 300_000_000,) * 2)
model = open_model(sys.argv[1])
ids = torch.randint(0, model.architecture.vocab_size, (3, 64), generator=torch.Generator().manual_seed(0))
key = statistics_key(model.digest, model.tokenizer_digest, "text", (3, 64), 0, Estimator())
calibrate(model.model, model.architecture, ids, key, Path(sys.argv[2]), Estimator())
"""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}  # it has to see the limit itself
    done = subprocess.run(
        [sys.executable, "-c", script, folder, tmp_path / "out"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights > 400_000_000
    assert (tmp_path / "out" / "statistics.json").exists()
