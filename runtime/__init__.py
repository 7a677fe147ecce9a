"""The device side: numpy, onnxruntime, tokenizers and jinja2, and nothing else of edge-svd.

Importing this package is cheap; each name below is imported from its module when it is first used. `bench.bench` and
`generate.generate` bear the names of their modules, so they are imported from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_svd.runtime.bundle import Bundle as Bundle
    from edge_svd.runtime.bundle import is_bundle as is_bundle
    from edge_svd.runtime.bundle import open_bundle as open_bundle
    from edge_svd.runtime.bundle import verify as verify
    from edge_svd.runtime.chat import ChatTemplate as ChatTemplate
    from edge_svd.runtime.commands import Conversation as Conversation
    from edge_svd.runtime.commands import evaluate as evaluate
    from edge_svd.runtime.commands import evaluate_tasks as evaluate_tasks
    from edge_svd.runtime.commands import inspect as inspect
    from edge_svd.runtime.commands import run as run
    from edge_svd.runtime.embed import Embedder as Embedder
    from edge_svd.runtime.errors import BudgetError as BudgetError
    from edge_svd.runtime.errors import BundleError as BundleError
    from edge_svd.runtime.errors import EdgeSvdError as EdgeSvdError
    from edge_svd.runtime.errors import Failure as Failure
    from edge_svd.runtime.errors import InputError as InputError
    from edge_svd.runtime.prefix_scorer import PrefixScorer as PrefixScorer
    from edge_svd.runtime.sampling import Sampler as Sampler
    from edge_svd.runtime.schema import Manifest as Manifest
    from edge_svd.runtime.score import Score as Score
    from edge_svd.runtime.score import ScoringSession as ScoringSession
    from edge_svd.runtime.score import perplexity as perplexity
    from edge_svd.runtime.session import Session as Session
    from edge_svd.runtime.task_file import read_items as read_items
    from edge_svd.runtime.task_score import TaskScore as TaskScore
    from edge_svd.runtime.task_score import score_tasks as score_tasks
    from edge_svd.runtime.text import read_text as read_text
    from edge_svd.runtime.tokenizer import Tokenizer as Tokenizer

_HOME = {
    "BudgetError": "errors",
    "Bundle": "bundle",
    "BundleError": "errors",
    "ChatTemplate": "chat",
    "Conversation": "commands",
    "EdgeSvdError": "errors",
    "Embedder": "embed",
    "Failure": "errors",
    "InputError": "errors",
    "Manifest": "schema",
    "PrefixScorer": "prefix_scorer",
    "Sampler": "sampling",
    "Score": "score",
    "ScoringSession": "score",
    "Session": "session",
    "TaskScore": "task_score",
    "Tokenizer": "tokenizer",
    "evaluate": "commands",
    "evaluate_tasks": "commands",
    "inspect": "commands",
    "is_bundle": "bundle",
    "open_bundle": "bundle",
    "perplexity": "score",
    "read_items": "task_file",
    "read_text": "text",
    "run": "commands",
    "score_tasks": "task_score",
    "verify": "bundle",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
