"""The page in a real browser: it renders, complains about nothing, and fits a desktop and a phone."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from front_made import made_front

from edge_svd.front.folder import write_front

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no headless browser is installed ({', '.join(NAMES)})")

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --hide-scrollbars --force-color-profile=srgb"
).split()
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter((node) =>
    node.getBoundingClientRect().right > innerWidth + 1 && !node.closest(".scroll, svg, .skip"));
  const shown = [...document.querySelectorAll("svg.chart")].filter((node) => node.getBoundingClientRect().width > 0);
  const tab = document.querySelector("[role=tab][aria-selected=true]");
  tab.focus();
  tab.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
  document.body.dataset.result = JSON.stringify({
    overflowing: wide.map((node) => node.className || node.tagName), charts: shown.length,
    focused: document.activeElement.textContent,
    panels: [...document.querySelectorAll(".plan")].filter((node) => !node.hidden).length });
});</script>"""


def browse(page: Path, profile: Path, width: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},1600"]
    command += ["--enable-logging=stderr", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def pixels(file: Path) -> tuple[int, int, set[bytes]]:
    """Width, height and the distinct colours of an 8-bit RGB or RGBA PNG."""
    data, at, packed = file.read_bytes(), 8, b""
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8 and kind in (2, 6)
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    raw, step = zlib.decompress(packed), {2: 3, 6: 4}[kind]
    above, colours = bytearray(width * step), set()
    for y in range(height):
        start = y * (width * step + 1)
        line = bytearray(raw[start + 1 : start + 1 + width * step])
        _unfilter(raw[start], line, above, step)
        colours |= {bytes(line[i : i + 3]) for i in range(0, len(line), step)}
        above = line
    return width, height, colours


def _unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> None:
    """Undo a PNG row filter in place."""
    for i in range(len(line) if kind else 0):
        a, b, c = (line[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        line[i] = (line[i] + (0, a, b, (a + b) // 2, paeth)[kind]) & 255


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    write_front(folder, made_front())
    return folder / "index.html"


@pytest.mark.parametrize("width", [1280, 500])
def test_it_is_drawn(page: Path, width: int, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    done = browse(page, tmp_path / "profile", width, f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr, done.stderr
    found_width, height, colours = pixels(picture)
    assert (found_width, height) == (width, 1600)
    # Text and lines blend into many shades; the colours of the lines themselves must be among them.
    assert len(colours) > 50
    assert {bytes.fromhex("b84a00"), bytes.fromhex("0063a6")} <= colours


@pytest.mark.parametrize("width", [1280, 500])
def test_it_fits_and_answers_to_the_keyboard(page: Path, width: int, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    done = browse(probed, tmp_path / "profile", width, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>tiny-model: size, quality, speed</title>" in done.stdout
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found is not None
    result = found.group(1).replace("&quot;", '"')
    # The front, the small charts and one heat map, each in one of its two layouts.
    assert result == '{"overflowing":[],"charts":5,"focused":"60MB","panels":1}'


def test_the_page_is_whole_without_its_script(page: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.html"
    plain.write_text(re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.S))
    done = browse(plain, tmp_path / "profile", 1280, "--dump-dom")
    assert done.stdout.count('class="plan"') == 2
    assert not re.search(r"<section[^>]* hidden", done.stdout) and 'role="tab"' not in done.stdout


def test_a_console_error_would_be_seen(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</body>", "<script>nowhere()</script></body>"))
    assert "CONSOLE" in browse(broken, tmp_path / "profile", 1280, "--dump-dom").stderr
