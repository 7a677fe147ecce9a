"""A comparison: what is not known yet is made and measured, method by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import torch

from edge_svd.calibrate.statistics import Statistics
from edge_svd.compare.asked import Asked, Cell
from edge_svd.compare.at_ratio import AtRatios
from edge_svd.compare.at_size import AtSizes
from edge_svd.compare.healer import Healer
from edge_svd.compare.made import Maker
from edge_svd.compare.measures import Measures
from edge_svd.compare.result import result
from edge_svd.compare.rows import Row, Rows
from edge_svd.models import OpenedModel
from edge_svd.progress import step

DENSE = "dense"


def compare(
    opened: OpenedModel,
    statistics: Statistics,
    asked: Asked,
    healing_windows: Callable[[], torch.Tensor] | None = None,
) -> Row:
    """Everything that was asked for, measured where it is not known yet.

    healing_windows: gives the text to heal on, int64 [count, length], one window in eight of it held out to see whether
    that helps; asked for only where something is healed, and needed there.

    Raises:
        InputError: unknown names, unusable texts or tasks, statistics without what a method needs, a ratio that an
            allocation cannot meet. BudgetError: a size that no plan meets. Failure: NaN or Inf anywhere.
    """
    asked.check()
    measures, rows = Measures(asked, opened), Rows(opened, statistics)
    missing = [cell for cell in asked if measures.lacks(rows.of(cell))]
    dense = rows.read(DENSE)
    if missing or measures.lacks_dense(dense):
        with step("Measuring the dense model") as tick:
            dense = measures.of_dense(dense, map(rows.of, missing), partial(rows.write, names=DENSE), tick)
        at_ratios = AtRatios(opened, statistics, rows, Healer(opened, statistics, healing_windows))
        at_sizes = AtSizes(opened, statistics, rows)
        for method in dict.fromkeys(cell.method for cell in missing):
            own = [cell for cell in missing if cell.method == method]
            _measure(at_ratios, method, [cell for cell in own if cell.size is None], measures, rows)
            _measure(at_sizes, method, [cell for cell in own if cell.size is not None], measures, rows)
    return result(opened, statistics, asked, measures, dense, rows)


def _measure(maker: Maker, method: str, cells: Sequence[Cell], measures: Measures, rows: Rows) -> None:
    if not cells:
        return
    with closing(maker.made(method, cells)) as found:
        for made in found:
            with step(f"Measuring {made.cell.title}") as tick, made.placed():
                row, names = rows.of(made.cell) | made.record, made.cell.names
                measures.take(row, partial(rows.write, names=names), tick)
