"""`tasks` for anything: multiple-choice accuracy of a bundle, a checkpoint or a model.

From Python, on a model in memory whose weights may have been replaced:

    items = strided(read_items("arc_easy.jsonl.gz"), 500)
    score = score_tasks(ModelScorer(model, tokenizer), items)  # TaskScore: acc, acc_norm, standard errors, n
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_svd.evaluate.model_scorer import ModelScorer
from edge_svd.evaluate.targets import torch_target
from edge_svd.runtime.bundle import is_bundle
from edge_svd.runtime.commands import evaluate_tasks as evaluate_bundle_tasks
from edge_svd.runtime.task_file import TaskItem, read_items, strided
from edge_svd.runtime.task_score import TaskScore, score_tasks

__all__ = ["ModelScorer", "TaskItem", "TaskScore", "evaluate_tasks", "read_items", "score_tasks", "strided"]


def evaluate_tasks(
    target: str,
    data: Path,
    *,
    limit: int | None = None,
    threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskScore:
    """The accuracy of TARGET on a file of items (`task_file.read_items`), or on `limit` of them (`task_file.strided`).

    `threads` are those of onnxruntime; `progress(done, items)` is called behind every item. InputError if target, file
    or an item cannot be used; Failure on logits that are not finite.
    """
    if is_bundle(Path(target)):
        return evaluate_bundle_tasks(target, data, limit=limit, threads=threads, progress=progress)
    items = strided(read_items(data), limit)
    scorer = ModelScorer(*torch_target(target))
    return score_tasks(scorer, items, progress=lambda done: progress(done, len(items)))
