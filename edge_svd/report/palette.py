"""Colours of techniques, told apart with every common colour blindness and, by marker and dash, without colour."""

from __future__ import annotations

LIGHT = ("#0063a6", "#b84a00", "#00795a", "#a3307d", "#7a5c00", "#4a4ab8", "#1a7a8f", "#666666", "#8c2d2d")
"""On white, each with a contrast of at least 4.5."""

DARK = ("#6cb8f5", "#ff9d5c", "#45cfa2", "#f18fcb", "#e0c04a", "#aeb0ff", "#7fdcec", "#bdbdbd", "#ff9c9c")
"""On near-black, the same hues."""

FULL_BITS = 8.0
"""Bits per weight from which on a cell takes the full colour of its technique."""


def tint(number: int, bits: float) -> tuple[str, str]:
    """Colour of a cell of technique `number` at so many bits per weight, paler for fewer, and of the text on it."""
    base = LIGHT[number % len(LIGHT)]
    share = 0.16 + 0.84 * min(max(bits, 0.0) / FULL_BITS, 1.0)
    channels = [round(255 + (int(base[i : i + 2], 16) - 255) * share) for i in (1, 3, 5)]
    fill = "#" + "".join(f"{c:02x}" for c in channels)
    return fill, max(("#000000", "#ffffff"), key=lambda text: contrast(fill, text))


def contrast(one: str, two: str) -> float:
    """Contrast ratio of two #rrggbb colours as WCAG 2 defines it, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(two)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = []
    for i in (1, 3, 5):
        c = int(colour[i : i + 2], 16) / 255
        linear.append(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def style_rules() -> str:
    """CSS that gives the classes t0, t1, … the variable --c, for light and for dark."""
    light = "".join(f".t{i}{{--c:{colour}}}" for i, colour in enumerate(LIGHT))
    dark = "".join(f".t{i}{{--c:{colour}}}" for i, colour in enumerate(DARK))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
