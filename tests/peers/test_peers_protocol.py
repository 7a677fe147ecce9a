"""What a worker measures, on decoders that are known, and our own worker on a tiny bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rivals import protocol
from rivals.protocol import Request
from runtime_tiny import VOCABULARY, make_weights, write_bundle

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.score import perplexity
from edge_svd.runtime.session import Session

Array = np.ndarray[Any, Any]
RIVALS = Path(protocol.__file__).parent
SCRIPTS = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
"""As the benchmark runs its workers: with their folder on the path."""


class Counter:
    """Always predicts the token after the last one, of ten; remembers what it was asked."""

    def __init__(self, request: Request) -> None:
        self.calls: list[Any] = []

    def reset(self) -> None:
        self.calls.append("reset")

    def feed(self, ids: Array) -> Array:
        self.calls.append(ids.shape)
        return np.eye(10)[(ids[:, -1] + 1) % 10]

    def logits(self, ids: Array) -> Array:
        return 3.0 * np.eye(10)[(ids + 1) % 10]


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    np.save(tmp_path / "tokens.npy", np.arange(32, dtype=np.int64).reshape(2, 16) % 10)

    def make(task: str, **changes: Any) -> Request:
        settings = {"prompt": 4, "long": 12, "new": 5} | changes
        return Request(task, "model", str(tmp_path / "tokens.npy"), 1, **settings)

    return make


def test_negative_log_likelihood_against_plain_sums() -> None:
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(150, 33)).astype(np.float32) * 20, random.integers(0, 33, 150)
    expected = 0.0
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        expected -= float(row[target] - np.log(np.exp(row).sum()))
    assert protocol.negative_log_likelihood(logits, targets) == pytest.approx(expected, rel=1e-10)


def test_score(request_of: Any) -> None:
    """Right but at the ends of tens: ids count up, so every target is the predicted one."""
    found = protocol.score(Counter, request_of("score"))
    expected = float(np.log(np.exp(3.0) + 9) - 3.0)
    assert found["tokens"] == 30 and found["nll"] == pytest.approx(expected)
    assert found["perplexity"] == pytest.approx(np.exp(expected))


def test_score_refuses_what_is_no_score(request_of: Any) -> None:
    class Broken(Counter):
        def logits(self, ids: Array) -> Array:
            return np.full((len(ids), 10), np.nan)

    class Short(Counter):
        def logits(self, ids: Array) -> Array:
            return np.zeros((1, 10))

    with pytest.raises(ValueError, match="finite"):
        protocol.score(Broken, request_of("score"))
    with pytest.raises(ValueError, match="1 rows"):
        protocol.score(Short, request_of("score"))


def test_speed_measures_cold_warm_long_and_decoding(request_of: Any) -> None:
    opened: list[Counter] = []

    def opening(request: Request) -> Counter:
        opened.append(Counter(request))
        return opened[-1]

    found = protocol.speed(opening, request_of("speed"))
    assert found["made"] == [4, 5, 6, 7, 8]
    names = {"load_s", "first_token_s", "prefill_tokens_per_s", "prefill_long_tokens_per_s", "decode_tokens_per_s"}
    assert all(found[name] > 0 for name in names)
    (decoder,) = opened
    cold_and_warm = ["reset", (1, 4)] * (1 + protocol.REPEATS)
    assert decoder.calls == [*cold_and_warm, "reset", (1, 12), "reset", (1, 4), *[(1, 1)] * 5]


def test_a_batch_takes_a_window_each_and_counts_all(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of("batch", batch=3)
    ids = protocol.prompts(request)
    assert ids.shape == (3, 16) and ids[0].tolist() == ids[2].tolist() != ids[1].tolist()
    monkeypatch.setattr(protocol, "decode", lambda decoder, logits, new: (2.0, []))
    assert protocol.batch(Counter, request) == {"decode_tokens_per_s": 3 * 5 / 2.0}


def test_a_loop_of_the_runtime_itself_counts(request_of: Any) -> None:
    class Own(Counter):
        def generate(self, new: int) -> list[int]:
            return [7] * new

    decoder = Own(request_of("speed"))
    took, made = protocol.decode(decoder, np.zeros((1, 10)), 3)
    assert made == [7, 7, 7] and decoder.calls == [] and took >= 0


def test_peak_memory_is_a_peak() -> None:
    code = (
        "import numpy as np, protocol; before = protocol.peak_rss_bytes(); block = np.ones(2**25); del block;"
        "print(protocol.peak_rss_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=RIVALS, env=SCRIPTS)
    assert 7.9 * 2**25 <= int(done.stdout) < 10 * 2**25


def ask(script: Path, request: Request) -> dict[str, Any]:
    command = [sys.executable, str(script), request.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=SCRIPTS)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_our_worker_on_a_tiny_bundle(request_of: Any, tmp_path: Path) -> None:
    """Score, decoding and a batch agree with the runtime used directly."""
    folder = write_bundle(tmp_path / "bundle", make_weights())
    ids = np.random.default_rng(3).integers(0, VOCABULARY, (3, 32))
    np.save(tmp_path / "tokens.npy", ids)

    def request(task: str, batch: int = 1) -> Request:
        tokens = str(tmp_path / "tokens.npy")
        return Request(task, str(folder), tokens, 1, prompt=8, long=24, new=16, batch=batch)

    script, bundle = RIVALS / "run_edge_svd.py", open_bundle(folder)
    scored = ask(script, request("score"))
    assert scored["nll"] == pytest.approx(perplexity(bundle, ids.ravel().tolist(), window=32).nll, rel=1e-6)
    session, made = Session(bundle, threads=1), []
    logits = session.prefill(ids[0, :8].tolist())
    for _ in range(16):
        made.append(int(np.argmax(logits)))
        logits = session.step(made[-1])
    assert ask(script, request("speed"))["made"] == made
    assert ask(script, request("batch", 3))["decode_tokens_per_s"] > 0
    assert ask(script, request("memory"))["peak_rss_bytes"] > 20e6
    assert "onnxruntime" in scored["versions"]


def test_a_failing_worker_answers_with_its_error(request_of: Any) -> None:
    found = ask(RIVALS / "run_edge_svd.py", request_of("score"))
    assert set(found) == {"error"} and "model" in found["error"]
