"""Line and scatter charts as inline SVG whose colours are CSS variables, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edge_svd.report.scales import Scale, linear_range, linear_ticks, log_range, log_ticks, tick_label

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down", "bar")
DASHES = ("", "7 4", "2 4", "10 4 2 4", "4 2", "12 5", "2 2", "8 3 2 3 2 3")
BESIDE = ((10, 0, "start"), (-10, 0, "end"), (8, -13, "start"), (8, 14, "start"), (-8, -13, "end"))
ABOVE = ((0, -15, "middle"), (0, 17, "middle"), (8, -13, "start"), (-8, -13, "end"), (8, 15, "start"), (-8, 15, "end"))
"""Where a label may lie: away from its point by (dx, dy), in order of preference; above where a line runs sideways."""

LETTER = 0.6
"""Width of an average letter of the system font in its own size: for placing labels without measuring text."""


@dataclass(frozen=True)
class Mark:
    """One point: x and y in the units of the axes, what it says when pointed at, and a label beside it ("": none)."""

    x: float
    y: float
    tip: str
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour (`style`, a CSS class), marker and dash; `line` joins them; `hollow` leaves markers open."""

    name: str
    style: str
    marks: tuple[Mark, ...]
    marker: str = "circle"
    dash: str = ""
    line: bool = True
    hollow: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Frame:
    """Size of a chart in pixels of its own, letters included; `css` says on which screens it is shown."""

    width: int
    height: int
    css: str = ""
    letters: float = 13
    margins: tuple[float, float, float, float] = (14, 16, 46, 60)
    ticks: tuple[int, int] = (11, 8)


WIDE = Frame(960, 440, "wide", margins=(14, 20, 48, 66))
NARROW = Frame(380, 360, "narrow", ticks=(5, 7))
SMALL = Frame(350, 310, margins=(16, 18, 46, 72), ticks=(5, 7))


@dataclass(frozen=True)
class Chart:
    """What is drawn; `title` and `description` are its text alternative."""

    title: str
    description: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    zero_y: bool = False
    diagonal: bool = False


def draw(chart: Chart, frame: Frame, ident: str) -> str:
    """The chart as one <svg> element; `ident` is unique in the page. A chart has at least one point."""
    top, right, bottom, left = frame.margins
    marks = [mark for series in chart.series for mark in series.marks]
    room = 0.12 if any(mark.label for mark in marks) else 0.04
    x_range = log_range([m.x for m in marks]) if chart.log_x else linear_range([m.x for m in marks], room=room)
    ys = [m.y for m in marks]
    y_range = log_range(ys) if chart.log_y else linear_range(ys, zero=chart.zero_y)
    if chart.diagonal:
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    x = Scale(*x_range, left, frame.width - right, chart.log_x)
    y = Scale(*y_range, frame.height - bottom, top, chart.log_y)
    parts = [_axes(chart, frame, x, y)]
    if chart.diagonal:
        low, high = x_range
        parts.append(
            f'<line class="diagonal" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>'
        )
    parts += [_series(series, x, y) for series in chart.series]
    parts.append(_labels(chart, frame, x, y))
    return (
        f'<svg class="chart {frame.css}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d" style="font-size:{frame.letters}px">'
        f'<title id="{ident}-t">{escape(chart.title)}</title><desc id="{ident}-d">{escape(chart.description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def swatch(series: Series) -> str:
    """A short sample of a series for a legend."""
    line = f'<line class="stroke" x1="2" y1="8" x2="34" y2="8"{_dash(series)}/>' if series.line else ""
    shape = _marker(series.marker, 18, 8, 4.5)
    strong, hollow = (" strong" if series.strong else ""), (" hollow" if series.hollow else "")
    return (
        f'<svg class="swatch {series.style}{strong}" viewBox="0 0 36 16" width="36" height="16" aria-hidden="true">'
        f'{line}<g class="marks{hollow}">{shape}</g></svg>'
    )


def _axes(chart: Chart, frame: Frame, x: Scale, y: Scale) -> str:
    parts = []
    across, up = frame.ticks
    for value in log_ticks(x.low, x.high, across) if x.log else linear_ticks(x.low, x.high, across):
        at = f"{x(value):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{y.start:.1f}" y2="{y.end:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{y.start + 18:.1f}" text-anchor="middle">{tick_label(value)}</text>'
        )
    for value in log_ticks(y.low, y.high, up) if y.log else linear_ticks(y.low, y.high, up):
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 7:.1f}" y="{at}" dy=".35em" text-anchor="end">{tick_label(value)}</text>'
        )
    middle = (y.start + y.end) / 2
    parts.append(
        f'<text class="axis" x="{(x.start + x.end) / 2:.1f}" y="{frame.height - 8}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_label)}</text>"
    )
    return "".join(parts)


def _series(series: Series, x: Scale, y: Scale) -> str:
    points = [(x(mark.x), y(mark.y)) for mark in series.marks]
    parts = []
    if series.line and len(points) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="stroke" points="{path}"{_dash(series)}/>')
    radius = 5.5 if series.strong else 4.5
    shapes = "".join(
        f"<g><title>{escape(mark.tip)}</title>{_marker(series.marker, a, b, radius)}</g>"
        for mark, (a, b) in zip(series.marks, points, strict=True)
    )
    strong, hollow = (" strong" if series.strong else ""), (" hollow" if series.hollow else "")
    return f'<g class="{series.style}{strong}">{"".join(parts)}<g class="marks{hollow}">{shapes}</g></g>'


def _dash(series: Series) -> str:
    return f' stroke-dasharray="{series.dash}"' if series.dash else ""


def _marker(name: str, x: float, y: float, r: float) -> str:
    if name == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    shapes = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "down": ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "bar": ((-0.4, -1.3), (0.4, -1.3), (0.4, 1.3), (-0.4, 1.3)),
        "plus": (
            *((-0.35, -1.25), (0.35, -1.25), (0.35, -0.35), (1.25, -0.35), (1.25, 0.35), (0.35, 0.35)),
            *((0.35, 1.25), (-0.35, 1.25), (-0.35, 0.35), (-1.25, 0.35), (-1.25, -0.35), (-0.35, -0.35)),
        ),
    }
    shapes["cross"] = tuple(((a - b) * 0.72, (a + b) * 0.72) for a, b in shapes["plus"])
    return f'<polygon points="{" ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in shapes[name])}"/>'


def _labels(chart: Chart, frame: Frame, x: Scale, y: Scale) -> str:
    """Labels beside their points, each where it hides neither a point nor another label."""
    size = frame.letters * 0.92
    taken = [
        (x(m.x) - 6, y(m.y) - 6, x(m.x) + 6, y(m.y) + 6)
        for series in chart.series
        if any(mark.label for mark in series.marks)
        for m in series.marks
    ]
    parts = []
    for mark, places in ((m, ABOVE if s.line else BESIDE) for s in chart.series for m in s.marks if m.label):
        width = len(mark.label) * size * LETTER
        a, b = x(mark.x), y(mark.y)
        for dx, dy, anchor in places:
            left = a + dx - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
            box = (left, b + dy - size / 2, left + width, b + dy + size / 2)
            inside = box[0] >= x.start + 2 and box[2] <= x.end + frame.margins[1]
            inside = inside and y.end <= box[1] and box[3] <= y.start
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(
                    f'<text class="label" x="{a + dx:.1f}" y="{b + dy:.1f}" dy=".35em" text-anchor="{anchor}" '
                    f'style="font-size:{size:.1f}px">{escape(mark.label)}</text>'
                )
                break
    return "".join(parts)


def _overlap(one: Sequence[float], two: Sequence[float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
