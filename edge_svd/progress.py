"""Progress bars on stderr with an estimate of the time left; where stderr is no terminal, a few plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[int, int], None]


def console() -> Console:
    """Where everything but results goes."""
    return Console(file=sys.stderr, highlight=False)


@contextmanager
def step(title: str) -> Iterator[Tick]:
    """A bar for one step of work; yields tick(done, total)."""
    out = console()
    started = time.monotonic()
    if not out.is_terminal:
        out.print(f"{title} …", markup=False)
        yield lambda done, total: None
        out.print(f"{title}: {time.monotonic() - started:.1f} s", markup=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
