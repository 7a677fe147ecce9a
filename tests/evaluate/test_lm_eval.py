"""Bundles as models of lm-eval: the same accuracy as `edge-svd tasks`, whole texts, generated answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from task_items import choice_items, write_items

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.commands import evaluate_tasks, run
from edge_svd.runtime.errors import InputError
from edge_svd.runtime.score import ScoringSession, negative_log_likelihood

pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'edge-svd[lm-eval]' brings it")

Made = Callable[..., Path]

TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write_items(tmp_path / "items.jsonl", choice_items(60))


@pytest.fixture
def task(tmp_path: Path, items: Path) -> Path:
    """A folder with the same items as a task of lm-eval, which puts the space before a choice itself."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    bare = [line | {"choices": [choice.removeprefix(" ") for choice in line["choices"]]} for line in lines]
    data = write_items(tmp_path / "bare.jsonl", bare)
    (folder / "tiny.yaml").write_text(TASK.format(data=data, cache=tmp_path / "datasets"))
    return folder


@pytest.mark.parametrize("cache", ("float32", "int8"))
def test_the_accuracy_is_that_of_tasks(made: Made, items: Path, task: Path, cache: str) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import edge_svd.evaluate.lm_eval_model  # noqa: F401

    bundle = made("llama", "int8", cache) / "bundle"
    manager = TaskManager(include_path=str(task), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="edge-svd", model_args=f"bundle={bundle},threads=1", tasks=["tiny_choices"], task_manager=manager
    )
    result = found["results"]["tiny_choices"]
    ours = evaluate_tasks(bundle, items, threads=1)
    assert 0 < ours.acc < 1 and ours.acc != ours.acc_norm
    for name, value in ours.to_json().items():
        if name != "n":
            metric, _, error = name.partition("_stderr") if name.endswith("_stderr") else (name, "", None)
            key = f"{metric}_stderr,none" if error is not None else f"{metric},none"
            assert result[key] == pytest.approx(value, abs=1e-12), name


@pytest.mark.slow
def test_its_command_line(made: Made, items: Path, task: Path, tmp_path: Path) -> None:
    bundle = made("llama") / "bundle"
    arguments = ["--model", "edge-svd", "--model_args", f"bundle={bundle},threads=1", "--tasks", "tiny_choices"]
    command = [sys.executable, "-P", "-m", "edge_svd.evaluate.lm_eval", *arguments]
    command += ["--include_path", str(task), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")
    result = json.loads(written.read_text())["results"]["tiny_choices"]
    assert result["acc,none"] == pytest.approx(evaluate_tasks(bundle, items, threads=1).acc)
    command[command.index(f"bundle={bundle},threads=1")] = f"bundle={tmp_path / 'none'}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("edge-svd: There is no bundle at")


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.fixture
def model(made: Made) -> Any:
    from edge_svd.evaluate.lm_eval_model import EdgeSvdLM

    return EdgeSvdLM(str(made("llama") / "bundle"), threads=1, context=24)


def test_whole_texts(model: Any, made: Made) -> None:
    """Every token once, each behind as many as the context allows."""
    text = "The river near the stone keeps 3 engines in its garden. The paper keeps 17 letters in its market. " * 2
    ids = [model.prefix_token_id, *model.tok_encode(text)]
    assert len(ids) > 2 * model.max_length
    session = ScoringSession(open_bundle(made("llama") / "bundle"), threads=1)
    expected, at = 0.0, 0
    while at < len(ids) - 1:
        count = min(model.max_length, len(ids) - 1 - at)
        window = np.array(ids[max(0, at + count - model.max_length) : at + count])
        rows = session.logits(window[None])[0][-count:]
        expected -= float(negative_log_likelihood(rows, np.array(ids[at + 1 : at + 1 + count])).sum())
        at += count
    (found, none) = model.loglikelihood_rolling([asked(text), asked("")], disable_tqdm=True)
    assert found == pytest.approx(expected, abs=5e-3) and none == 0.0


def test_likelihoods_keep_the_order_of_requests(model: Any) -> None:
    pairs = [
        ("The stone", " keeps"),
        ("", "The river"),
        ("The engine near", " the"),
        ("The stone", " near"),
        ("  ", "a"),
    ]
    together = model.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    alone = [model.loglikelihood([asked(*pair)], disable_tqdm=True)[0] for pair in pairs]
    np.testing.assert_allclose([score for score, _ in together], [score for score, _ in alone], atol=2e-3)
    assert len({round(score, 3) for score, _ in together}) == len(pairs)
    assert all(score < 0 and math.isfinite(score) for score, _ in together)
    with pytest.raises(InputError, match="longer than the model's context of 24"):
        model.loglikelihood([asked("The", " 0123456789" * 9)], disable_tqdm=True)


def test_answers(model: Any, made: Made) -> None:
    bundle = made("llama") / "bundle"
    free = "".join(run(bundle, "The river", max_new_tokens=8, threads=1, special_tokens=False))
    settings = {"until": [], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    request = asked("The river", settings)
    assert model.generate_until([request, request], disable_tqdm=True) == [free, free]
    stop = free[2:4]
    (cut,) = model.generate_until([asked("The river", settings | {"until": [stop, "never"]})], disable_tqdm=True)
    assert cut == free.split(stop)[0] and len(cut) < len(free)
    long = asked("The stone near the " * 30 + "The river", settings)
    assert len(model.generate_until([long], disable_tqdm=True)) == 1
    with pytest.raises(InputError, match="256 tokens do not fit the context of 24"):
        model.generate_until([asked("The river", {})], disable_tqdm=True)


def test_chats(model: Any) -> None:
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The river"}]
    assert model.apply_chat_template(said[:1]).endswith("<|im_start|>assistant\n")
    assert model.apply_chat_template(said, add_generation_prompt=False).endswith("<|im_start|>assistant\nThe river")


def test_a_context_outside_the_models(made: Made) -> None:
    from edge_svd.evaluate.lm_eval_model import EdgeSvdLM

    with pytest.raises(InputError, match="between 2 and the model's 256"):
        EdgeSvdLM(str(made("llama") / "bundle"), context=257)
