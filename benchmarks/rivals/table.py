"""The tables: every rival with ours that is not larger beside it, ratios, and losses called losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

TIED = 0.02
"""Relative difference of medians within which speed, memory and loading are called equal."""

TIED_PERPLEXITY = 0.001


@dataclass(frozen=True)
class Spread:
    """What several rounds gave: never one number alone."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def text(self, scale: float = 1.0, digits: int = 0) -> str:
        """The median, and least to most where those differ as written."""
        least, most = (f"{value / scale:.{digits}f}" for value in (min(self.values), max(self.values)))
        middle = f"{self.median / scale:.{digits}f}"
        return middle if least == most else f"{middle} ({least}–{most})"


@dataclass(frozen=True)
class Speed:
    """With one number of threads: seconds, and tokens a second."""

    load: Spread
    first_token: Spread
    prefill: Spread
    prefill_long: Spread
    decode: Spread


@dataclass(frozen=True)
class Result:
    """All about one contestant; `change` of perplexity is relative to dense. What was not measured is None or absent.

    `read` is the bytes of weights that a decoded token reads, `which` says of what they are the bytes.
    """

    name: str
    ours: bool
    bytes: int
    change: float | None = None
    peak: Spread | None = None
    speeds: dict[int, Speed] = field(default_factory=dict)
    batch: Spread | None = None
    read: int | None = None
    which: str = ""

    @property
    def threads(self) -> int | None:
        """The number of threads at which it decodes fastest: its best setting."""
        return max(self.speeds, key=lambda number: self.speeds[number].decode.median, default=None)

    @property
    def best(self) -> Speed | None:
        return None if self.threads is None else self.speeds[self.threads]


@dataclass(frozen=True)
class Metric:
    """A figure to compare; `value` gives its median, None where it was not measured."""

    name: str
    value: Callable[[Result], float | None]
    larger_is_better: bool


def _of_speed(part: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.best is None else getattr(result.best, part).median


METRICS = (
    Metric("decode", _of_speed("decode"), True),
    Metric("prefill", _of_speed("prefill_long"), True),
    Metric("RSS", lambda result: None if result.peak is None else result.peak.median, False),
    Metric("load", _of_speed("load"), False),
)


def speed_of(rounds: Iterable[dict[str, Any]], name: str) -> Speed | None:
    """From the rounds of one number of threads, those in which the contestant was measured; None where in none."""
    found = [entry[name] for entry in rounds if name in entry]
    if not found:
        return None
    keys = (
        "load_s",
        "first_token_s",
        "prefill_tokens_per_s",
        "prefill_long_tokens_per_s",
        "decode_tokens_per_s",
    )
    return Speed(*(Spread(tuple(float(entry[key]) for entry in found)) for key in keys))


def best_within(ours: Sequence[Result], size: int) -> Result | None:
    """Ours with the least perplexity that is not larger than `size` bytes; the smaller one of two equal ones."""
    fitting = [entry for entry in ours if entry.bytes <= size and entry.change is not None]
    return min(fitting, key=lambda entry: (entry.change, entry.bytes), default=None)


def ratio(own: Result, other: Result, metric: Metric) -> float | None:
    """Ours / theirs, of medians."""
    mine, theirs = metric.value(own), metric.value(other)
    return None if mine is None or not theirs else mine / theirs


def loses(value: float, metric: Metric) -> bool:
    """Whether a ratio of ours to theirs is a loss, beyond what counts as equal."""
    return value < 1 - TIED if metric.larger_is_better else value > 1 + TIED


def losses(own: Result, other: Result) -> list[str]:
    """What the other one is better at, perplexity included."""
    found = []
    if own.change is not None and other.change is not None:
        if (1 + own.change) / (1 + other.change) - 1 > TIED_PERPLEXITY:
            found.append("perplexity")
    for metric in METRICS:
        value = ratio(own, other, metric)
        if value is not None and loses(value, metric):
            found.append(metric.name)
    return found


def main_table(results: Sequence[Result]) -> str:
    """One row a rival, largest first: its figures at its best number of threads, ours, ratios, what we lose."""
    figures = ["MB", "perplexity", "decode tok/s", "prefill tok/s", "peak RSS MB", "load s"]
    ratios = [f"{metric.name} ×" for metric in METRICS]
    lines = _head(["rival", *figures, "ours, not larger", *figures, *ratios, "we lose"])
    own = [result for result in results if result.ours]
    for rival in _largest_first(result for result in results if not result.ours):
        mine = best_within(own, rival.bytes)
        cells = [rival.name, *_figures(rival)]
        if mine is None:
            cells += ["none that small", *[""] * (len(figures) + len(ratios)), "–"]
        else:
            lost = losses(mine, rival)
            said = "**" + ", ".join(lost) + "**" if lost else "nothing"
            cells += [mine.name, *_figures(mine), *(_ratio(mine, rival, metric) for metric in METRICS), said]
        lines.append(_row(cells))
    return "\n".join(lines)


def best_rivals_table(results: Sequence[Result]) -> str:
    """One row a bundle of ours: in each figure the best of the rivals whose row it stands in, and ours / theirs."""
    lines = _head(["ours", "beside", *(f"best {metric.name}, ours / theirs" for metric in METRICS)])
    own = [result for result in results if result.ours]
    for mine in _largest_first(own):
        beside = [rival for rival in results if not rival.ours and best_within(own, rival.bytes) is mine]
        cells = []
        for metric in METRICS:
            measured = [(value, rival) for rival in beside if (value := metric.value(rival)) is not None]
            if not measured or metric.value(mine) is None:
                cells.append("–")
                continue
            pick = max if metric.larger_is_better else min
            _, best = pick(measured, key=lambda pair: pair[0])
            value = ratio(mine, best, metric)
            assert value is not None
            said = f"{value:.2f}"
            cells.append(f"{best.name}: {f'**{said}**' if loses(value, metric) else said}")
        lines.append(_row([mine.name, f"{len(beside)} rivals", *cells]))
    return "\n".join(lines)


def speed_table(results: Sequence[Result]) -> str:
    """One row a contestant and number of threads: medians and least to most of all rounds."""
    names = ["load s", "first token ms", "prefill 64 tok/s", "prefill 512 tok/s", "decode tok/s"]
    lines = _head(["", "threads", *names])
    for result in _largest_first(results):
        for threads, speed in sorted(result.speeds.items()):
            cells = [
                speed.load.text(digits=2),
                speed.first_token.text(1e-3),
                speed.prefill.text(),
                speed.prefill_long.text(),
                speed.decode.text(),
            ]
            lines.append(_row([result.name, str(threads), *cells]))
    return "\n".join(lines)


def batch_table(results: Sequence[Result], batch: int, threads: int) -> str:
    """Decoding of several sequences in step, of those that can."""
    lines = _head(["", f"decode tok/s, {batch} sequences, {threads} threads", "times one sequence"])
    for result in _largest_first(results):
        if result.batch is not None:
            one = result.speeds.get(threads)
            times = "–" if one is None else f"{result.batch.median / one.decode.median:.2f}"
            lines.append(_row([result.name, result.batch.text(), times]))
    return "\n".join(lines)


def bandwidth_table(results: Sequence[Result], bandwidth: dict[int, Spread]) -> str:
    """How much of the memory bandwidth that was read decoding reaches; above 1 the last-level cache helped."""
    lines = _head(["", "MB read a token", "which bytes", *(f"share, {n} threads" for n in sorted(bandwidth))])
    for result in _largest_first(results):
        if result.read is None or not result.speeds:
            continue
        shares = []
        for threads in sorted(bandwidth):
            speed = result.speeds.get(threads)
            reached = None if speed is None else result.read * speed.decode.median / bandwidth[threads].median
            shares.append("–" if reached is None else f"{reached:.2f}")
        lines.append(_row([result.name, f"{result.read / 1e6:.1f}", result.which, *shares]))
    return "\n".join(lines)


def _largest_first(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: (-result.bytes, result.name))


def _figures(result: Result) -> list[str]:
    best = result.best
    return [
        f"{result.bytes / 1e6:.1f}",
        "–" if result.change is None else f"{result.change:+.1%}",
        "–" if best is None else best.decode.text(),
        "–" if best is None else best.prefill_long.text(),
        "–" if result.peak is None else f"{result.peak.median / 1e6:.0f}",
        "–" if best is None else f"{best.load.median:.2f}",
    ]


def _ratio(own: Result, other: Result, metric: Metric) -> str:
    value = ratio(own, other, metric)
    if value is None:
        return "–"
    return f"**{value:.2f}**" if loses(value, metric) else f"{value:.2f}"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
