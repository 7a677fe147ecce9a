"""`edge-svd tasks` on a model, its checkpoint and its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import edge_svd
from task_items import every_form, write_items
from transformers import AutoTokenizer

from edge_svd.evaluate.tasks import ModelScorer, evaluate_tasks, read_items, score_tasks
from edge_svd.loading import load
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.likelihood import encode_pair
from edge_svd.runtime.prefix_scorer import PrefixScorer

Made = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("cache", "one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_items(tmp_path / "items.jsonl", every_form())


def test_checkpoint_and_bundle_agree(made: Made, data: Path) -> None:
    folder = made("llama")
    checkpoint = edge_svd("tasks", folder / "checkpoint", "--data", data, "--json").json
    bundle = edge_svd("tasks", folder / "bundle", "--data", data, "--json").json
    assert checkpoint["n"] == bundle["n"] == 10
    # The share of the item with labels is no 0 or 1.
    assert [bundle[key] for key in checkpoint] == pytest.approx(list(checkpoint.values()), abs=2e-3)


def test_both_scorers_read_texts_alike(made: Made, data: Path) -> None:
    folder = made("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint" / "companions")
    model, bundle = ModelScorer(load(folder / "checkpoint"), tokenizer), PrefixScorer(open_bundle(folder / "bundle"))
    gaps = []
    for item in read_items(data):
        for texts in zip(item.contexts, item.continuations, strict=True):
            pair = encode_pair(model, *texts)
            assert pair == encode_pair(bundle, *texts)
            one, other = (scorer.likelihoods(pair.context, [pair.continuation])[0] for scorer in (model, bundle))
            gaps.append(abs(one.log_probability - other.log_probability) / len(pair.continuation))
    assert np.median(gaps) < 0.05, "int8 activations, nats per token"


def test_a_dense_model(tiny_model: Path, data: Path) -> None:
    found = edge_svd("tasks", tiny_model, "--data", data, "--limit", 4, "--json").json
    assert found["n"] == 4
    assert found == evaluate_tasks(str(tiny_model), data, limit=4).to_json()
    items = read_items(data)
    scorer = ModelScorer(load_dense(tiny_model), AutoTokenizer.from_pretrained(tiny_model))
    assert found == score_tasks(scorer, [items[at] for at in (0, 2, 5, 7)]).to_json()


def load_dense(folder: Path) -> object:
    from edge_svd.models import open_model

    return open_model(str(folder)).model


def test_what_is_refused(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    edge_svd("tasks", tmp_path / "none", "--data", data).refused(2, "none")
    edge_svd("tasks", tiny_model, "--data", tmp_path / "none.jsonl").refused(2, "none.jsonl does not exist")
    long = write_items(
        tmp_path / "long.jsonl", [{"id": "L", "context": "a", "choices": [" 0123456789" * 40], "gold": 0}]
    )
    edge_svd("tasks", tiny_model, "--data", long).refused(2, "Item 'L'", "longer than the model's context of 256")
