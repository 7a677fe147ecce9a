"""Likelihoods of continuations against whole sequences in plain numpy, and what becomes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import edge_svd
from runtime_reference import forward
from runtime_tiny import BOS_TOKEN, HEADS, KV_HEADS, LAYERS, MAX_CONTEXT, make_tokenizer, make_weights, write_bundle

from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.commands import evaluate_tasks
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.likelihood import (
    Likelihood,
    Pair,
    PairError,
    encode_pair,
    fitted,
    kept_length,
    pair_likelihoods,
    prefix_of,
)
from edge_svd.runtime.prefix_scorer import PrefixScorer
from edge_svd.runtime.task_file import TaskItem, read_items
from edge_svd.runtime.task_score import TaskScore, outcome, score_tasks

Array = np.ndarray[Any, Any]
_draw = np.random.default_rng(4)


def ids(count: int) -> list[int]:
    return [int(i) for i in _draw.integers(0, 256, count)]


def plain(weights: dict[str, Array], context: Sequence[int], continuation: Sequence[int]) -> Likelihood:
    """In float64 from one pass over the whole but for the last token, which is predicted alone."""
    whole = [*context, *continuation[:-1]]
    rows = forward(weights, whole, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)[len(context) - 1 :]
    top = rows.max(axis=1, keepdims=True)
    logs = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    total = sum(row[token] for row, token in zip(logs, continuation, strict=True))
    return Likelihood(float(total), list(rows.argmax(axis=1)) == list(continuation))


def same(found: Sequence[Likelihood], wanted: Sequence[Likelihood]) -> None:
    assert [one.greedy for one in found] == [one.greedy for one in wanted]
    np.testing.assert_allclose(
        [one.log_probability for one in found], [one.log_probability for one in wanted], rtol=1e-4, atol=2e-3
    )


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> PrefixScorer:
    return PrefixScorer(bundle, threads=1)


# Likelihoods


@pytest.mark.parametrize("chunk", (1, 5, 128))
def test_likelihoods_are_those_of_whole_sequences(bundle: Bundle, weights: dict[str, Array], chunk: int) -> None:
    scorer = PrefixScorer(bundle, threads=1, chunk=chunk)
    story = ids(17)
    for context in (story, [*story, 3, 4], story, story[:9], [*story[:9], 1], ids(1), ids(30)):
        continuations = [ids(1), ids(9), ids(2), ids(13)]
        same(scorer.likelihoods(context, continuations), [plain(weights, context, one) for one in continuations])


def test_a_greedy_continuation(scorer: PrefixScorer, weights: dict[str, Array]) -> None:
    context, said = ids(6), []
    for _ in range(5):
        said.append(int(forward(weights, context + said, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS)[-1].argmax()))
    other = [*said[:4], (said[4] + 1) % 256]
    found = scorer.likelihoods(context, [said, said[:1], other])
    assert [one.greedy for one in found] == [True, True, False]


def test_whole_passes_alike_are_computed_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = PrefixScorer(bundle, threads=1, chunk=8)
    read: list[int] = []
    original = scorer._pass

    def counting(tokens: list[int], start: int) -> None:
        read.append(len(tokens))
        original(tokens, start)

    def reads(context: list[int], *continuations: list[int]) -> list[int]:
        read.clear()
        scorer.likelihoods(context, continuations)
        return read

    monkeypatch.setattr(scorer, "_pass", counting)
    context = ids(20)
    assert reads(context, [1], [2]) == [8, 8, 4]
    assert reads(context, [1], [2, 3, 4]) == [2]
    assert reads([*context, 7, 8], [1, 2], [3]) == [6, 1]
    assert reads(context[:16], [1]) == [8]
    assert reads(context[:16], [1]) == []
    assert reads([256, *context], [1]) == [8, 8, 5]
    # What a continuation wrote was not read in whole passes.
    first, last = ids(6), ids(10)
    reads(first, last)
    assert reads([*first, *last, 1, 2, 3], [1]) == [8, 8, 3]


def test_what_need_not_be_read_again() -> None:
    known = list(range(10))
    assert [kept_length(known, known[:count], 4) for count in (1, 4, 5, 8, 9, 10)] == [0, 0, 4, 4, 8, 8]
    assert [kept_length(known, [*known, 1, 2, 3], chunk) for chunk in (1, 4, 16)] == [10, 8, 0]
    assert [kept_length(known, [*known[:at], 99, *known[at:]], 4) for at in (0, 3, 4, 7)] == [0, 0, 4, 4]
    assert kept_length([], known, 4) == 0


def test_a_failure_leaves_nothing_behind(scorer: PrefixScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ids(9)
    wanted = scorer.likelihoods(context, [[1, 2]])

    def failing(tokens: list[int], start: int) -> None:
        raise Failure("gone")

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "_pass", failing)
        with pytest.raises(Failure):
            scorer.likelihoods(ids(5), [[1]])
    assert scorer.likelihoods(context, [[1, 2]]) == wanted


def test_the_cache_grows_to_the_models_context(
    bundle: Bundle, weights: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_svd.runtime.prefix_scorer._FIRST_CAPACITY", 5)
    scorer = PrefixScorer(bundle, threads=1)
    for length, capacity in ((3, 5), (9, 20), (MAX_CONTEXT - 2, MAX_CONTEXT)):
        context, last = ids(length), ids(3)
        same(scorer.likelihoods(context, [last]), [plain(weights, context, last)])
        assert scorer._capacity == capacity


def test_what_cannot_be_scored(scorer: PrefixScorer) -> None:
    for context, last in (([], [1]), ([1], []), ([1], [258]), ([-1], [1])):
        with pytest.raises(InputError):
            scorer.likelihoods(context, [last])
    scorer.likelihoods([1], [ids(MAX_CONTEXT)])
    with pytest.raises(InputError, match=f"longer than the model's context of {MAX_CONTEXT}"):
        scorer.likelihoods([1, 2], [ids(MAX_CONTEXT)])


def test_logits_that_are_not_finite_name_the_item(tmp_path: Path) -> None:
    weights = make_weights()
    weights["embedding"][ord("z")] = np.nan
    token = make_tokenizer().encode("z").ids[0]
    weights["embedding"][token] = np.nan
    broken = PrefixScorer(open_bundle(write_bundle(tmp_path / "broken", weights)), threads=1)
    with pytest.raises(Failure, match="Scoring stopped at item 3: .*not finite"):
        score_tasks(broken, [TaskItem("item 3", ("z", "z"), (" a", " b"), 0)])


# Texts to ids


def test_spaces_go_to_the_continuation(scorer: PrefixScorer) -> None:
    encode = scorer.encode
    assert encode_pair(scorer, "ab", " cd") == Pair(tuple(encode("ab")), tuple(encode(" cd")))
    assert encode_pair(scorer, "ab \n", "cd") == Pair(tuple(encode("ab")), tuple(encode(" \ncd")))


def test_an_empty_context_is_one_token(scorer: PrefixScorer) -> None:
    bos = make_tokenizer().token_to_id(BOS_TOKEN)
    assert scorer.prefix_id == bos
    assert encode_pair(scorer, "", "cd") == Pair((bos,), tuple(scorer.encode("cd")))
    assert encode_pair(scorer, "  ", "cd") == Pair((bos,), tuple(scorer.encode("  cd")))
    assert encode_pair(scorer, "", f"{BOS_TOKEN}cd") == Pair((bos,), tuple(scorer.encode("cd")))
    with pytest.raises(PairError, match="no token of its own"):
        encode_pair(scorer, "", BOS_TOKEN)
    assert (prefix_of(1, [2]), prefix_of(0, []), prefix_of(None, [2, 3])) == (1, 0, 2)
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        prefix_of(None, [])


def test_long_pairs_lose_their_beginning() -> None:
    assert fitted([1, 2, 3, 4], [5, 6], 5) == Pair((1, 2, 3, 4), (5, 6))
    assert fitted([1, 2, 3, 4], [5, 6], 4) == Pair((2, 3, 4), (5, 6))
    assert fitted([1, 2, 3, 4], [5, 6], 2) == Pair((4,), (5, 6))
    with pytest.raises(PairError, match="3 tokens, longer than the model's context of 2"):
        fitted([1], [5, 6, 7], 2)


def test_a_long_item_is_scored_on_its_last_tokens(scorer: PrefixScorer, weights: dict[str, Array]) -> None:
    text = "".join(chr(97 + int(n)) for n in _draw.integers(0, 26, 90))
    (found,) = pair_likelihoods(scorer, [encode_pair(scorer, text, " end")])
    whole = scorer.encode(text + " end")[-(MAX_CONTEXT + 1) :]
    same([found], [plain(weights, whole[:-4], whole[-4:])])


class Merging:
    """A tokenizer that leaves nothing of an "x" behind other text."""

    max_context, prefix_id = 8, 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("x", "")]

    def likelihoods(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Likelihood]:
        """The likelier, the smaller the ids."""
        return [Likelihood(-float(sum(one)), sum(one) < 100) for one in continuations]


def test_an_item_without_tokens_is_named() -> None:
    with pytest.raises(InputError, match=r"^Item 'q' \(line 4\) has a continuation of which .* no token of its own\.$"):
        score_tasks(Merging(), [TaskItem("item 'q' (line 4)", ("a", "a"), ("b", "x"), 0)])
    with pytest.raises(InputError, match="^Item 'q' has a continuation of 9 tokens, longer than .* context of 8"):
        score_tasks(Merging(), [TaskItem("item 'q'", ("a", "a"), ("b", "123456789"), 0)])
    with pytest.raises(InputError, match="no items"):
        score_tasks(Merging(), [])


# Accuracy


def item(*continuations: str, gold: int = 0, labels: tuple[bool, ...] | None = None) -> TaskItem:
    return TaskItem("item 1", ("c",) * len(continuations), continuations, gold, labels)


def likelihoods(*scores: float, greedy: bool = False) -> list[Likelihood]:
    return [Likelihood(score, greedy) for score in scores]


def test_lengths_are_bytes_without_the_leading_space() -> None:
    asked = item(" ab", " abcd", gold=1)
    assert outcome(asked, likelihoods(-2.0, -3.0)) == (0.0, 1.0)
    # Two bytes a letter: -3 / 8 bytes beats -1 / 2.
    assert outcome(item("ab", " éééé"), likelihoods(-1.0, -3.0)) == (1.0, 0.0)
    assert outcome(item("ab", " cd"), likelihoods(-1.0, -1.0)) == (1.0, 1.0), "the first of equals"


def test_a_single_choice_is_a_greedy_match() -> None:
    assert outcome(item(" a"), likelihoods(-9.0, greedy=True)) == (1.0, 1.0)
    assert outcome(item(" a"), likelihoods(-0.1)) == (0.0, 0.0)


def test_labels_share_probability() -> None:
    asked = item(" a", " b", " c", labels=(True, False, True))
    found = outcome(asked, likelihoods(*(math.log(p) for p in (0.1, 0.3, 0.2))))
    assert found == pytest.approx((0.5, 0.5))
    assert outcome(asked, likelihoods(-5000.0, -5000.0, -9000.0)) == pytest.approx((0.5, 0.5)), "no underflow"


def test_standard_errors() -> None:
    right, wrong = item("a", "b"), item("a", "b", gold=1)
    score = score_tasks(Merging(), [right, right, right, wrong])
    assert score == TaskScore(0.75, 0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 3)), score.acc_stderr, 4)
    assert score_tasks(Merging(), [right]) == TaskScore(1.0, 1.0, None, None, 1)


def test_progress_counts_items() -> None:
    done: list[int] = []
    score_tasks(Merging(), [item("a", "b")] * 3, progress=done.append)
    assert done == [1, 2, 3]


# The command

LINES = [
    {"id": 0, "context": "One two three", "choices": [" four", " five", " six and seven"], "gold": 1, "group": 0},
    {"id": 1, "context": "", "choices": ["Alone", "Together"], "gold": 0},
    {
        "id": 2,
        "contexts": ["He said", "She said"],
        "continuation": " nothing.",
        "gold": 1,
        "context": "",
        "choices": [],
    },
    {"id": 3, "context": "My name is", "choices": [" Anna"], "gold": 0},
    {"id": 4, "context": "Q: Is it?\nA: ", "choices": ["Yes", "No", "Né"], "labels": [1, 1, 0], "gold": 0},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_the_command(pristine: Path, data: Path, weights: dict[str, Array], scorer: PrefixScorer) -> None:
    found = edge_svd("tasks", pristine, "--data", data, "--threads", 1, "--json").json
    expected = []
    for one in read_items(data):
        pairs = [encode_pair(scorer, *texts) for texts in zip(one.contexts, one.continuations, strict=True)]
        expected.append(outcome(one, [plain(weights, pair.context, pair.continuation) for pair in pairs]))
    assert list(found) == ["acc", "acc_norm", "acc_stderr", "acc_norm_stderr", "n"] and found["n"] == 5
    assert (found["acc"], found["acc_norm"]) == pytest.approx(tuple(np.mean(expected, axis=0)), abs=1e-4)
    assert found == evaluate_tasks(pristine, data, threads=1).to_json()


def test_the_command_for_people(pristine: Path, data: Path) -> None:
    said = edge_svd("tasks", pristine, "--data", data, "--limit", 2, "--threads", 1)
    assert said.code == 0 and said.out.startswith("acc ") and said.out.endswith(" over 2 items\n")
    assert edge_svd("tasks", pristine, "--data", data, "--limit", 1, "--threads", 1).out.endswith(" over 1 item\n")


def test_the_command_refuses(pristine: Path, data: Path, folder: Path) -> None:
    edge_svd("tasks", pristine, "--data", data.with_name("none")).refused(2, "none does not exist")
    edge_svd("tasks", pristine, "--data", data, "--limit", 0).refused(2, "--limit")
    edge_svd("tasks", pristine).refused(2, "--data")
    with open(data, "a") as file:
        file.write('{"id": 5}\n')
    edge_svd("tasks", pristine, "--data", data, "--json").refused(2, f"Line 6 of the task file {data}", "'choices'")
    (folder / "model_scoring.onnx").unlink()
    edge_svd("tasks", folder, "--data", data).refused(2, "model_scoring.onnx")
