"""The dense model writes its own calibration text: whole windows, real openings, the model's own distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from edge_svd.architectures import architecture_of
from edge_svd.calibrate import generate, openings
from edge_svd.calibrate.generate import opening_ids, sample, write_windows
from edge_svd.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

END = 257
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "granite", "olmo2", "gpt2", "opt"]


def tokenizer(template: str | None = None) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<s>", "</s>"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=template)


def model_of(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": END,
        "pad_token_id": None,
        "initializer_range": 0.3,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **changes})).eval()


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample from the float32 model itself, whatever the processor."""
    monkeypatch.setattr(generate, "bfloat16_is_faster", lambda: False)


def write(model: Any, window: int = 64, count: int = 6, seed: int = 0, words: Any = None, **options: Any) -> Any:
    words = words or tokenizer()
    return write_windows(model, words, architecture_of(model.config), window=window, count=count, seed=seed, **options)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_windows_are_full_deterministic_and_seeded(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "bfloat16_is_faster", lambda: bfloat16)
    monkeypatch.setattr(generate, "BATCH", 4)
    model = model_of("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    told: list[tuple[int, int]] = []
    ids = write(model, progress=lambda done, total: told.append((done, total)))
    assert ids.shape == (6, 64) and ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < 258
    assert np.array_equal(ids, write(model)) and not np.array_equal(ids, write(model, seed=1))
    assert told[-1] == (6 * 64, 6 * 64) and told == sorted(told)
    assert len({tuple(row) for row in ids}) == 6
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_see_what_a_whole_pass_sees(family: str, exact: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy steps through the cache are the arg max of one pass over the finished window, sliding layers included."""
    changes: dict[str, Any] = {"sliding_window": 8} if family in ("gemma2", "gemma3_text") else {}
    if family == "phi3":
        changes = {"tie_word_embeddings": False, "num_attention_heads": 4, "hidden_size": 32}
    model = model_of(family, num_hidden_layers=7 if family == "gemma3_text" else 3, **changes)
    if family == "gemma2":
        model.set_attn_implementation("eager")
    monkeypatch.setattr(generate, "sample", lambda logits, _: logits.argmax(-1))
    monkeypatch.setattr(generate, "opening_ids", lambda *_: [[10, 20, 30], [40], [50, 60]])
    ids = torch.from_numpy(write(model, window=40, count=3))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    checked = 0
    for row, length in zip(range(3), (3, 1, 2), strict=True):
        for position in range(length, 40):
            if END in ids[row, :position]:
                break
            best = logits[row, position - 1].topk(2).values
            if best[0] - best[1] > 1e-3:
                assert ids[row, position] == logits[row, position - 1].argmax()
                checked += 1
    assert checked > 30


def test_an_ended_text_is_followed_by_another_opening(exact: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "opening_ids", lambda *_: [[1, 2], [3, 4, END, 5], [6]])
    monkeypatch.setattr(generate, "sample", lambda logits, _: torch.full((len(logits),), END))
    ids = write(model_of("llama"), window=12, count=2)
    # row 0 starts with opening 0 and goes on with opening (0 + 2) % 3; an end token inside an opening ends nothing
    assert ids[0].tolist() == [1, 2, END, 6, END, 3, 4, END, 5, END, 1, 2]
    assert ids[1].tolist()[:7] == [3, 4, END, 5, END, 1, 2]


def test_openings_are_many_and_diverse() -> None:
    plain = opening_ids(tokenizer(), 0)
    assert len(plain) >= 64 and len({tuple(row) for row in plain}) == len(plain)
    assert opening_ids(tokenizer(), 0) == plain != opening_ids(tokenizer(), 1)
    assert max(map(len, plain)) < 128
    templated = opening_ids(tokenizer("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"), 0)
    assert sum(row[-1] == END for row in templated) == len(openings.REQUESTS)


def test_sampling_follows_the_nucleus() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.16, 0.03, 0.01])
    logits = probabilities.log().expand(20_000, 5) + 3.0
    drawn = sample(logits, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    kept = torch.tensor([0.5, 0.3, 0.16, 0.0, 0.0]) / 0.96
    torch.testing.assert_close(share, kept, rtol=0, atol=0.015)


def test_logits_that_are_not_finite_stop_the_writing() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="not finite"):
            sample(torch.tensor([[0.0, bad]]), torch.Generator())


def test_long_windows_are_refused() -> None:
    with pytest.raises(InputError, match="context of 256"):
        write(model_of("llama"), window=257)
