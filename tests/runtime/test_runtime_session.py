from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_reference import forward
from runtime_tiny import HEADS, KV_HEADS, LAYERS, MAX_CONTEXT, VOCABULARY, write_bundle

from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.generate import generate
from edge_svd.runtime.onnx_session import default_threads
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.score import ScoringSession
from edge_svd.runtime.session import Session

IDS = [int(i) for i in np.random.default_rng(1).integers(0, VOCABULARY, 40)]
# float32 against float64; logits reach ±100.
CLOSE = {"rtol": 1e-4, "atol": 2e-3}

Weights = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def expected(weights: Weights) -> np.ndarray[Any, Any]:
    return forward(weights, IDS, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)


def test_steps_equal_the_full_forward(bundle: Bundle, expected: np.ndarray[Any, Any]) -> None:
    session = Session(bundle, threads=1)
    for position, token in enumerate(IDS):
        np.testing.assert_allclose(session.step(token), expected[position], **CLOSE)
    assert session.position == len(IDS)


@pytest.mark.parametrize("chunk", [1, 7, 16, 40, 1000])
def test_chunked_prefill_equals_unchunked(bundle: Bundle, expected: np.ndarray[Any, Any], chunk: int) -> None:
    session = Session(bundle, threads=1)
    np.testing.assert_allclose(session.prefill(IDS, chunk=chunk), expected[-1], **CLOSE)
    assert session.position == len(IDS)


def test_the_scoring_graph_gives_every_position(
    bundle: Bundle, weights: Weights, expected: np.ndarray[Any, Any]
) -> None:
    session = ScoringSession(bundle, threads=1)
    np.testing.assert_allclose(session.logits(np.array([IDS]))[0], expected, **CLOSE)
    other = IDS[::-1]
    both = session.logits(np.array([IDS, other]))
    np.testing.assert_allclose(both[0], expected, **CLOSE)
    np.testing.assert_allclose(both[1], forward(weights, other, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS), **CLOSE)


def test_nothing_is_copied_per_token(bundle: Bundle) -> None:
    """The cache is written in place, one position a step, and what came before stays bit for bit."""
    session = Session(bundle, context=32, threads=1)
    session.prefill(IDS[:5])
    before = {name: (buffer.ctypes.data, buffer.copy()) for name, buffer in session.cache.items()}
    session.step(IDS[5])
    assert len(session.cache) == 2 * LAYERS
    for name, buffer in session.cache.items():
        address, old = before[name]
        assert buffer.ctypes.data == address
        np.testing.assert_array_equal(buffer[:, :, :5], old[:, :, :5])
        assert (buffer[:, :, 5] != 0).any()
        assert not buffer[:, :, 6:].any()


def test_truncate_forgets(bundle: Bundle, expected: np.ndarray[Any, Any]) -> None:
    session = Session(bundle, threads=1)
    session.prefill([*IDS[:10], 3, 4, 5, 6])
    session.truncate(10)
    np.testing.assert_allclose(session.prefill(IDS[10:]), expected[-1], **CLOSE)
    with pytest.raises(InputError, match="cannot be cut"):
        session.truncate(len(IDS) + 1)


def test_running_past_the_context(bundle: Bundle) -> None:
    session = Session(bundle, context=8, threads=1)
    with pytest.raises(InputError, match="context of 8 tokens is full"):
        session.prefill(IDS[:9])
    assert session.position == 0
    session.prefill(IDS[:8], chunk=3)
    with pytest.raises(InputError, match="context of 8 tokens is full"):
        session.step(1)
    assert session.position == 8


@pytest.mark.parametrize("context", [0, -1, MAX_CONTEXT + 1])
def test_context_beyond_the_model(bundle: Bundle, context: int) -> None:
    with pytest.raises(InputError, match=f"model's {MAX_CONTEXT} tokens"):
        Session(bundle, context=context)


def test_the_whole_context_can_be_used(bundle: Bundle, weights: Weights) -> None:
    ids = [int(i) for i in np.random.default_rng(2).integers(0, VOCABULARY, MAX_CONTEXT)]
    session = Session(bundle, threads=1)
    assert session.context == MAX_CONTEXT
    wanted = forward(weights, ids, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)[-1]
    np.testing.assert_allclose(session.prefill(ids, chunk=10), wanted, **CLOSE)


@pytest.mark.parametrize("ids", [[], [VOCABULARY], [-1], [2**40]])
def test_bad_ids(bundle: Bundle, ids: list[int]) -> None:
    session = Session(bundle, threads=1)
    with pytest.raises(InputError):
        session.prefill(ids)
    assert session.position == 0


def test_bad_settings(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="threads"):
        Session(bundle, threads=0)
    with pytest.raises(InputError, match="chunk"):
        Session(bundle, threads=1).prefill(IDS, chunk=0)
    assert default_threads() >= 1


def test_logits_that_are_not_finite(tmp_path: Path, weights: Weights) -> None:
    poisoned = {name: array.copy() for name, array in weights.items()}
    poisoned["embedding"][7] = np.inf
    broken = open_bundle(write_bundle(tmp_path / "broken", poisoned))
    session = Session(broken, threads=1)
    session.prefill([1, 2, 3])
    with pytest.raises(Failure, match="position 3"):
        session.step(7)
    with pytest.raises(Failure, match="sequence 0 of the batch are not finite"):
        ScoringSession(broken, threads=1).logits(np.array([[1, 2, 7, 3]]))


def test_greedy_generation_follows_the_reference(bundle: Bundle, weights: Weights) -> None:
    ids = IDS[:6]
    made = list(generate(Session(bundle, threads=1), ids, max_new_tokens=8, stop=()))
    wanted: list[int] = []
    for _ in range(8):
        wanted.append(int(forward(weights, ids + wanted, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)[-1].argmax()))
    assert made == wanted


def test_generation_stops_before_a_stop_token(bundle: Bundle) -> None:
    free = list(generate(Session(bundle, threads=1), IDS[:6], max_new_tokens=8, stop=()))
    end = free[4]
    assert list(generate(Session(bundle, threads=1), IDS[:6], max_new_tokens=8, stop=(end,))) == free[: free.index(end)]


def test_generation_and_the_context(bundle: Bundle) -> None:
    session = Session(bundle, context=12, threads=1)
    with pytest.raises(InputError, match="does not fit the context of 12"):
        generate(session, IDS[:13])
    with pytest.raises(InputError, match="at least 1"):
        generate(session, IDS[:6], max_new_tokens=0)
    assert session.position == 0
    assert len(list(generate(session, IDS[:6], max_new_tokens=7, stop=()))) == 7
    session.truncate()
    assert len(list(generate(session, IDS[:6], stop=()))) == 7
    assert session.position == 12


def test_sliding_is_as_if_only_the_kept_tokens_had_been_given(bundle: Bundle) -> None:
    session, fresh = (Session(bundle, context=16, threads=1) for _ in range(2))
    session.prefill(IDS[:16])
    session.slide(chunk=3)
    assert session.tokens == [*IDS[:4], *IDS[8:16]] and session.position == 12
    fresh.prefill(session.tokens)
    np.testing.assert_allclose(session.step(IDS[16]), fresh.step(IDS[16]), **CLOSE)
    session.slide(first=100)  # a quarter of the context at most
    assert session.tokens == [*IDS[:4], *IDS[9:17]]


@pytest.mark.parametrize("context", (1, 2, 3, 5, 12))
def test_generation_beyond_the_context(bundle: Bundle, context: int) -> None:
    """Every token is what a session that holds just the kept ones says."""
    session = Session(bundle, context=context, threads=1)
    ids = IDS[: min(4, context)]
    made = list(generate(session, ids, max_new_tokens=40, stop=()))
    assert len(made) == 40 and session.position <= context
    held = list(ids)
    for number, token in enumerate(made):
        fresh = Session(bundle, context=context, threads=1)
        assert int(fresh.prefill(held).argmax()) == token, number
        if len(held) == context:
            first = min(4, context // 4)
            held = [*held[:first], *held[max(first, context - context // 2) :]]
        held.append(token)


def test_sampled_generation_depends_on_the_seed_alone(bundle: Bundle) -> None:
    def made(seed: int) -> list[int]:
        sampler = Sampler(temperature=30.0, seed=seed)
        return list(generate(Session(bundle, threads=1), IDS[:6], max_new_tokens=20, sampler=sampler, stop=()))

    assert made(1) == made(1)
    assert made(1) != made(2)


UNTOUCHED = """
import os
from pathlib import Path
import numpy as np
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
buffer = np.zeros((1, 64, 4096, 64), np.float32)  # as Session makes them, 64 MiB
print(resident() - before)
buffer[:] = 1
print(resident() - before)
"""


def test_untouched_cache_costs_no_memory() -> None:
    """In a process of its own: here, what other tests have freed would be taken and cleared."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    found = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, check=True)
    untouched, touched = (int(line) for line in found.stdout.split())
    assert untouched < 4 << 20 and touched > 60 << 20
