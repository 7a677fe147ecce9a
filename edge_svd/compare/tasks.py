"""The multiple-choice tasks that a comparison scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from edge_svd.compare.asked import Asked
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.runtime.task_file import TaskItem, read_items, strided


@dataclass(frozen=True)
class Task:
    """Items of a multiple-choice task; `key` says which of them are scored."""

    name: str
    key: str
    items: Sequence[TaskItem]


def tasks_of(asked: Asked) -> list[Task]:
    """The tasks with as many items as are scored; InputError on a file that cannot be read."""
    found = []
    for path in asked.tasks:
        items = strided(read_items(path), asked.task_limit)
        # Where an item stands in its file does not matter.
        content = [[item.contexts, item.continuations, item.gold, item.labels] for item in items]
        digest = hashlib.sha256(canonical_json(content)).hexdigest()
        found.append(Task(path.name.removesuffix(".gz").removesuffix(".jsonl"), digest[:32], items))
    names = [task.name for task in found]
    if len(set(names)) < len(names):
        raise InputError("Two tasks of a comparison have the same name; rename one.")
    return found
