"""The script from end to end, with a worker that answers at once and a rival that cannot be installed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
from rivals import measure
from rivals.contestants import REFERENCE, Contestant, Workplace
from rivals.environments import Environment

from edge_svd.errors import Failure, InputError

WORKER = """
import json, sys
import numpy as np
request = json.loads(sys.argv[1])
assert np.load(request["tokens"]).shape == (4, 512) and request["new"] == 32
answers = {
    "score": {"nll": 1.0, "perplexity": 2.0 + 0.5 * request["options"]["worse"], "tokens": 3, "versions": {"x": "1"}},
    "memory": {"peak_rss_bytes": 10**8},
    "batch": {"decode_tokens_per_s": 30},
    "speed": {
        "load_s": 1.0,
        "first_token_s": 0.1,
        "prefill_tokens_per_s": 300,
        "prefill_long_tokens_per_s": 500,
        "decode_tokens_per_s": 10 * request["threads"],
    },
}
print(json.dumps(answers[request["task"]]))
"""


@pytest.fixture
def options(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model=tiny_model,
        text=tiny_text_file,
        bundles=[],
        out=tmp_path / "out",
        rivals="torch,openvino",
        rounds=3,
        threads="1,2",
        batch=4,
        windows=64,
        quick=True,
    )


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which environments were asked for. Three contestants: dense, one that loses a quarter, one without network."""
    worker, weights = tmp_path / "run_fake.py", tmp_path / "weights"
    worker.write_text(WORKER)
    weights.write_bytes(b"x" * 2_000_000)
    found: list[str] = []

    def fake(name: str, environment: str | None, worse: int) -> Contestant:
        return Contestant(
            name, "torch", environment, str(worker), lambda place: weights, options={"worse": worse}, note="slow"
        )

    def ensure(self: Environment, out: Path) -> Path:
        found.append(self.name)
        raise Failure("pip install openvino: no network")

    everyone = [fake(REFERENCE, None, 0), fake("worse", None, 1), *(fake(f"ov {i}", "openvino", 1) for i in (1, 2))]
    monkeypatch.setattr(Environment, "ensure", ensure)
    monkeypatch.setattr(measure, "bandwidth", lambda threads: 10e9)
    monkeypatch.setattr(peers, "rivals", lambda model, tools: everyone)
    monkeypatch.setattr(peers, "fitted", lambda place, sizes: [])
    return found


def test_one_rival_fails_and_the_rest_goes_on(
    options: argparse.Namespace, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(peers.RESULTS.iterdir())
    peers.work(options)
    shown = capsys.readouterr().out
    assert f"| {REFERENCE} | 2.0 | +0.0% | 20 | 500 | 100 | 1.00 | none that small |" in shown
    assert "| worse | 2.0 | +25.0% |" in shown and "| worse | 30 | 1.50 |" in shown
    assert f"{REFERENCE}, worse: slow." in shown
    assert shown.count("Failed: ov") == 2 and "no network" in shown
    assert asked == ["openvino"], "what failed once is not tried again"
    (file,) = options.out.glob("peers-*.json")
    found = json.loads(file.read_bytes())
    assert {row["name"]: row["best_threads"] for row in found["rows"]} == {REFERENCE: 2, "worse": 2}
    assert set(found["failures"]) == {"ov 1", "ov 2"} and found["versions"] == {"torch": {"x": "1"}}
    assert len(found["measured"]["speed"]["1"]["rounds"]) == 1, "--quick is one round"
    assert found["machine"]["processor"] and (options.out / "peers.md").read_text() == shown
    assert sorted(peers.RESULTS.iterdir()) == before, "what is not complete is no result"


def test_without_rounds_the_last_speeds_are_shown(
    options: argparse.Namespace, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options.rounds = 0
    peers.work(options)
    assert "| worse | 2.0 | +25.0% | – | – | 100 | – |" in capsys.readouterr().out
    options.rounds = 1
    peers.work(options)
    options.rounds = 0
    capsys.readouterr()
    peers.work(options)
    assert "| worse | 2.0 | +25.0% | 20 | 500 | 100 | 1.00 |" in capsys.readouterr().out
    (options.out.parent / "weights").write_bytes(b"other files")
    peers.work(options)
    assert "| worse | 0.0 | +25.0% | – | – | 100 | – |" in capsys.readouterr().out


def test_windows_are_the_first_of_the_text(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    file = peers.windows_of(tiny_model, tiny_text_file, 3, tmp_path / "windows.npy")
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(tiny_text_file.read_text()).ids
    np.testing.assert_array_equal(np.load(file), np.array(ids[: 3 * 512]).reshape(3, 512))


def test_numbers_between_commas() -> None:
    assert peers.numbers("1,2,1", "--threads") == (1, 2)
    for text in ("", "1,", "-1", "x", "1.5"):
        with pytest.raises(InputError, match="--threads"):
            peers.numbers(text, "--threads")


def test_default_bundles_are_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rivals import contestants

    commands: list[list[Any]] = []

    def run(command: list[str], what: str, timeout: float = 0) -> str:
        commands.append(command)
        Path(command[-1]).mkdir()
        return ""

    monkeypatch.setattr(contestants, "run", run)
    place = Workplace(tmp_path / "model", tmp_path / "out")
    made = contestants.fitted(place, ["145MB", "88MB"])
    assert [path.name for path in made] == ["145MB", "88MB"] and all(path.is_dir() for path in made)
    assert commands[0][1:7] == ["-m", "edge_svd.cli", "fit", str(place.model), "--size", "145MB"]
    contestants.fitted(place, ["145MB", "88MB"])
    assert len(commands) == 2, "what is there is not fitted again"
