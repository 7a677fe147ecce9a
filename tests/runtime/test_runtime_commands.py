from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_reference import forward
from runtime_tiny import HEADS, KV_HEADS, LAYERS, MAX_CONTEXT, make_weights, write_bundle

from edge_svd.runtime.bench import bench
from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.commands import Conversation, evaluate, inspect, run
from edge_svd.runtime.errors import BundleError, Failure, InputError
from edge_svd.runtime.memory import PeakAnonymous, anonymous_bytes, peak_rss_bytes
from edge_svd.runtime.score import ScoringSession, cut_windows, negative_log_likelihood, perplexity

Array = np.ndarray[Any, Any]
TEXT = "The quick brown fox jumps over the lazy dog, and writes ünïcödé 日本語 while it is at it. " * 3


def fresh(code: str, *arguments: str) -> Any:
    """What `code` prints as JSON in a fresh process without the current folder on its path."""
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_runtime_imports_nothing_of_the_workstation(pristine: Path) -> None:
    loaded = fresh(
        "import json, sys, edge_svd.runtime as r\n"
        "import edge_svd.runtime.bench, edge_svd.runtime.bench_worker\n"
        "for name in r.__all__: getattr(r, name)\n"
        "''.join(r.run(sys.argv[1], 'hello', max_new_tokens=3))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))",
        str(pristine),
    )
    assert "onnxruntime" in loaded
    heavy = {
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "safetensors",
        "optimum",
        "scipy",
        "ml_dtypes",
        "typer",
        "rich",
        "huggingface_hub",
    }
    assert not heavy & set(loaded)


def test_importing_the_package_is_cheap() -> None:
    loaded = fresh("import json, sys, edge_svd.runtime; print(json.dumps(list(sys.modules)))")
    assert "numpy" not in loaded
    assert "onnxruntime" not in loaded


def test_run_streams_what_generate_makes(pristine: Path) -> None:
    once = list(run(pristine, "hello", max_new_tokens=10, temperature=5.0, seed=4, threads=1))
    assert len(once) > 1
    assert once == list(run(pristine, "hello", max_new_tokens=10, temperature=5.0, seed=4, threads=1))
    assert "".join(once) != "".join(run(pristine, "hello", max_new_tokens=10, temperature=5.0, seed=5, threads=1))


def test_run_with_the_chat_template_equals_a_first_reply(pristine: Path) -> None:
    answer = "".join(run(pristine, "hi", max_new_tokens=5, threads=1, template=True))
    assert answer == "".join(Conversation(pristine, threads=1).reply("hi", max_new_tokens=5))
    assert answer != "".join(run(pristine, "hi", max_new_tokens=5, threads=1))


def test_run_refuses_before_it_yields(pristine: Path) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        run(pristine, "")
    with pytest.raises(InputError, match="does not fit the context"):
        run(pristine, "x" * (MAX_CONTEXT + 1), max_new_tokens=2)
    with pytest.raises(InputError, match="no bundle"):
        run(pristine / "nowhere", "hi")


def test_a_conversation_reuses_its_cache_and_says_the_same(pristine: Path) -> None:
    chat = Conversation(pristine, threads=1)
    computed: list[int] = []
    original = chat._session.prefill

    def counting(ids: list[int], **settings: Any) -> Any:
        computed.append(len(ids))
        return original(ids, **settings)

    chat._session.prefill = counting  # type: ignore[method-assign]
    first = "".join(chat.reply("a", max_new_tokens=3))
    messages = list(chat.messages)
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[1]["content"] == first
    second = "".join(chat.reply("b", max_new_tokens=3))
    again = Conversation(pristine, threads=1)
    again.messages = messages
    assert "".join(again.reply("b", max_new_tokens=3)) == second
    whole = again._tokenizer.encode(again._template.render([*messages, {"role": "user", "content": "b"}]))
    assert computed[1] < len(whole) - 10, "the second turn computes only what the first left open"


def test_a_message_that_does_not_fit(pristine: Path) -> None:
    chat = Conversation(pristine, threads=1, system="s")
    "".join(chat.reply("a", max_new_tokens=2))
    before, cached = list(chat.messages), chat._session.tokens
    with pytest.raises(InputError, match="does not fit the context"):
        chat.reply("x" * MAX_CONTEXT)
    assert chat.messages == before and chat._session.tokens == cached


def test_a_conversation_goes_on_beyond_the_context(pristine: Path) -> None:
    """Many contexts of tokens: it keeps answering, from the system's message and the latest turns."""
    chat = Conversation(pristine, threads=1, system="s")
    prompts: list[list[int]] = []
    original = chat._session.prefill

    def watching(ids: list[int], **settings: Any) -> Any:
        prompts.append([*chat._session.tokens, *ids])
        return original(ids, **settings)

    chat._session.prefill = watching  # type: ignore[method-assign]
    opening = chat._tokenizer.encode("<|start|>system\ns<|end|>\n")
    turns = []
    for number in range(30):
        prompts.clear()
        said = "".join(chat.reply(f"{number:02}", max_new_tokens=20))
        closing = chat._tokenizer.encode(f"<|start|>user\n{number:02}<|end|>\n<|start|>assistant\n")
        assert prompts[0][: len(opening)] == opening and prompts[0][-len(closing) :] == closing
        assert len(prompts[0]) <= 3 * MAX_CONTEXT // 4 and chat._session.position <= MAX_CONTEXT
        turns.append(prompts[0].count(chat._tokenizer.encode("<|end|>")[0]) - 1)
        assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert len(chat.messages) == 61 and max(turns) <= 4


def test_an_answer_pushes_out_the_oldest_tokens(pristine: Path) -> None:
    chat = Conversation(pristine, threads=1, system="s")
    said = "".join(chat.reply("tell me", max_new_tokens=3 * MAX_CONTEXT))
    opening = chat._tokenizer.encode("<|start|>system\ns<|end|>\n<|start|>user\n")
    assert chat._session.tokens[: len(opening[:16])] == opening[:16]
    assert len(said) > MAX_CONTEXT and chat._session.position <= MAX_CONTEXT


def test_an_answer_longer_than_the_context(pristine: Path) -> None:
    once = list(run(pristine, "hello", max_new_tokens=3 * MAX_CONTEXT, temperature=9.0, seed=1, threads=1))
    assert sum(map(len, once)) > MAX_CONTEXT


def test_a_reply_that_is_not_read_to_the_end(pristine: Path) -> None:
    chat = Conversation(pristine, threads=1)
    answer = chat.reply("a", max_new_tokens=8)
    said = next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert "".join(chat.reply("b", max_new_tokens=2))


# Scoring


def test_perplexity_against_numpy(bundle: Bundle) -> None:
    weights = make_weights()
    ids = [int(i) for i in np.random.default_rng(3).integers(0, 256, 50)]
    losses: list[float] = []
    for start in (0, 16, 32):
        part = ids[start : start + 16]
        logits = forward(weights, part, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)
        losses += [
            float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[t])
            for row, t in zip(logits[:-1], part[1:], strict=True)
        ]
    score = perplexity(bundle, ids, window=16, windows=10, threads=1)
    assert score.tokens == 45
    assert score.nll == pytest.approx(np.mean(losses), rel=1e-4)
    assert score.perplexity == pytest.approx(np.exp(score.nll))
    first = perplexity(ScoringSession(bundle, threads=1), ids, window=16, windows=2, batch=2)
    assert first.tokens == 30
    assert first.nll == pytest.approx(np.mean(losses[:30]), rel=1e-4)
    assert perplexity(bundle, ids, window=16, windows=3, batch=2, threads=1).nll == pytest.approx(score.nll, rel=1e-5)


def test_on_window_sees_ids_and_logits(bundle: Bundle) -> None:
    ids = list(range(40))
    seen: list[tuple[list[int], Array]] = []
    perplexity(
        bundle,
        ids,
        window=16,
        windows=9,
        threads=1,
        on_window=lambda row, logits: seen.append((list(row), logits.copy())),
    )
    assert [row for row, _ in seen] == [ids[:16], ids[16:32]]
    wanted = forward(make_weights(), ids[16:32], layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)
    np.testing.assert_allclose(seen[1][1], wanted, rtol=1e-4, atol=2e-3)


def test_evaluate_reads_text_without_special_tokens(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    score = evaluate(pristine, tmp_path / "t.txt", window=32, windows=4, threads=1)
    assert score.tokens == 4 * 31
    assert score == perplexity(open_bundle(pristine), list(TEXT_IDS(pristine)), window=32, windows=4, threads=1)


def TEXT_IDS(pristine: Path) -> list[int]:
    from edge_svd.runtime.tokenizer import load_tokenizer

    return load_tokenizer(open_bundle(pristine)).encode(TEXT)


def test_short_texts_and_bad_windows(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="15 tokens, fewer than one window of 16"):
        perplexity(bundle, list(range(15)), window=16)
    with pytest.raises(InputError, match="at least 2"):
        perplexity(bundle, list(range(15)), window=1)
    with pytest.raises(InputError, match="windows must be"):
        perplexity(bundle, list(range(15)), window=4, windows=0)
    with pytest.raises(InputError, match="longer than the model's context"):
        perplexity(bundle, [0] * 200, window=MAX_CONTEXT + 1)
    assert cut_windows(list(range(10)), 4, 5).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_logit_that_is_not_finite_stops_scoring(tmp_path: Path) -> None:
    weights = make_weights()
    weights["embedding"][9] = np.nan
    broken = open_bundle(write_bundle(tmp_path / "broken", weights))
    with pytest.raises(Failure, match="window 1 .*not finite"):
        perplexity(broken, [1, 2, 3, 4, 5, 6, 7, 9], window=4, threads=1)


def test_negative_log_likelihood_is_stable() -> None:
    logits = np.array([[1e4, -1e4, 0.0]] * 70, np.float32)
    nll = negative_log_likelihood(logits, np.array([0, 1] * 35))
    np.testing.assert_allclose(nll, [0.0, 2e4] * 35)


# Measuring


def test_memory_peaks() -> None:
    with PeakAnonymous(interval=0.001) as peak:
        start = peak.peak
        block = np.ones(1 << 24, np.uint8)
        peak.sample()
        del block
    if sys.platform != "linux":
        assert peak.peak is None
        return
    assert start is not None
    assert peak.peak is not None
    assert peak.peak >= start + (1 << 24) - (1 << 20)
    resident, anonymous = peak_rss_bytes(), anonymous_bytes()
    assert resident is not None
    assert anonymous is not None
    assert resident > anonymous


def test_memory_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_svd.runtime.memory._STATUS", Path("/nowhere/status"))
    assert peak_rss_bytes() is None
    with PeakAnonymous() as peak:
        pass
    assert peak.peak is None


@pytest.mark.parametrize("context", [None, 40])
def test_bench(pristine: Path, context: int | None) -> None:
    ballast = np.ones(100 << 20, np.uint8)
    result = bench(pristine, prompt_tokens=8, new_tokens=4, threads=1, context=context)
    assert set(result) == {
        "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes", "peak_anonymous_bytes", "load_s", "file_bytes",
        "prompt_tokens", "new_tokens", "threads", "context",
    }  # fmt: skip
    assert result["context"] == (context or MAX_CONTEXT)
    assert result["file_bytes"] == sum(path.stat().st_size for path in pristine.iterdir())
    assert min(result["prefill_tokens_per_s"], result["decode_tokens_per_s"], result["load_s"]) > 0
    if sys.platform == "linux":
        assert 20e6 < result["peak_anonymous_bytes"] + 1e7 < result["peak_rss_bytes"] + 1e7
        assert result["peak_rss_bytes"] < ballast.nbytes, "memory of the caller is not counted"


def test_bench_refuses(pristine: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        bench(pristine, new_tokens=0)
    with pytest.raises(InputError, match="need a context between 640"):
        bench(pristine)
    (folder / "config.json").unlink()
    with pytest.raises(BundleError, match="missing"):
        bench(folder, prompt_tokens=4, new_tokens=2)


def test_bench_reports_errors_of_the_measuring_process(tmp_path: Path) -> None:
    weights = make_weights()
    weights["head"][:] = np.nan
    broken = write_bundle(tmp_path / "broken", weights)
    with pytest.raises(Failure, match="not finite"):
        bench(broken, prompt_tokens=4, new_tokens=2, threads=1)


def test_inspect(pristine: Path) -> None:
    content = inspect(pristine)
    assert content["model"]["vocab_size"] == 258
    assert content["file_bytes"] == sum(path.stat().st_size for path in pristine.iterdir())
    assert content["measurements"] == {}
    json.dumps(content, allow_nan=False)
