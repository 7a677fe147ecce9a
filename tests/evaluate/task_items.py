"""A file of items in every form, over the words that the tiny tokenizer was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_folder import WORDS


def choice_items(count: int) -> list[dict[str, Any]]:
    """Questions of three choices of one to four words each; every other one shares its context with the one before."""
    draw = np.random.default_rng(11)

    def words(least: int, most: int) -> str:
        return " ".join(WORDS[int(n)] for n in draw.integers(0, len(WORDS), draw.integers(least, most + 1)))

    items: list[dict[str, Any]] = []
    for number in range(count):
        context = items[-1]["context"] if number % 2 else f"The {words(3, 20)} is a"
        choices = [f" {words(1, 4)}." for _ in range(3)]
        items.append({"id": number, "context": context, "choices": choices, "gold": int(draw.integers(0, 3))})
    return items


def every_form() -> list[dict[str, Any]]:
    return [
        *choice_items(6),
        {"id": "empty", "context": "", "choices": ["The river", "A stone keeps"], "gold": 1},
        {"id": "partial", "contexts": ["The stone", "The long river"], "continuation": " near the market.", "gold": 0},
        {"id": "greedy", "context": "The letter near the", "choices": [" window"], "gold": 0},
        {"id": "labels", "context": "The:", "choices": [" a", " river", " in"], "labels": [1, 0, 1], "gold": 0},
    ]


def write_items(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path
