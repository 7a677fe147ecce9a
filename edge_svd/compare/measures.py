"""Everything that a comparison measures of a model in one shape: perplexity and KL on texts, accuracy on tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edge_svd.compare.asked import Asked
from edge_svd.compare.meter import TextMeter
from edge_svd.compare.rows import Row
from edge_svd.compare.tasks import tasks_of
from edge_svd.compare.texts import texts_of
from edge_svd.evaluate.tasks import ModelScorer, score_tasks
from edge_svd.models import OpenedModel
from edge_svd.progress import Tick

Save = Callable[[Row], None]


class Measures:
    """The texts and tasks of a comparison, and their results in rows: `row["texts"]` and `row["tasks"]`, by key."""

    def __init__(self, asked: Asked, opened: OpenedModel) -> None:
        """InputError on a text or a task that cannot be used."""
        self.asked, self.opened = asked, opened
        self.texts, self.tasks = texts_of(asked, opened), tasks_of(asked)
        self.meters: dict[str, TextMeter] = {}

    def lacks(self, row: Row) -> bool:
        """Whether a row does not hold every text and every task."""
        texts, tasks = row.get("texts", {}), row.get("tasks", {})
        return any(text.key not in texts for text in self.texts) or any(task.key not in tasks for task in self.tasks)

    def lacks_dense(self, known: Row) -> bool:
        """The same for what is known of the dense model: perplexity or accuracy by key."""
        keys = [*(text.key for text in self.texts), *(task.key for task in self.tasks)]
        return any(key not in known for key in keys)

    def of_dense(self, known: Row, rows: Iterable[Row], save: Save, tick: Tick) -> Row:
        """`known`, completed; to be called while the model is dense. Texts that no row lacks are left alone; `save` is
        called behind every result."""
        found, rows, total = dict(known), list(rows), len(self.texts) + len(self.tasks)
        for done, text in enumerate(self.texts):
            tick(done, total)
            if text.key not in known or any(text.key not in row.get("texts", {}) for row in rows):
                meter = TextMeter(
                    self.opened.model,
                    self.opened.architecture,
                    text.ids,
                    window=self.asked.window,
                    windows=self.asked.windows,
                )
                self.meters[text.key], found[text.key] = meter, meter.dense.perplexity
                save(found)
        for done, task in enumerate(self.tasks, start=len(self.texts)):
            tick(done, total)
            if task.key not in known:
                found[task.key] = score_tasks(self._scorer, task.items).to_json()
                save(found)
        return found

    def take(self, row: Row, save: Save, tick: Tick) -> None:
        """Measure what a row lacks, with the model as it is now; `save` is called behind every result."""
        texts, tasks = row.setdefault("texts", {}), row.setdefault("tasks", {})
        total = len(self.texts) + len(self.tasks)
        for done, text in enumerate(self.texts):
            tick(done, total)
            if text.key not in texts:
                loss = self.meters[text.key].measure()
                texts[text.key] = {"perplexity": loss.perplexity, "kl": loss.kl}
                save(row)
        for done, task in enumerate(self.tasks, start=len(self.texts)):
            tick(done, total)
            if task.key not in tasks:
                tasks[task.key] = score_tasks(self._scorer, task.items).to_json()
                save(row)

    @property
    def _scorer(self) -> ModelScorer:
        return ModelScorer(self.opened.model, self.opened.tokenizer)
