"""The metrics of an encoder's matrices against the exact Jacobian of its embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from tiny_encoder import tiny_encoder, tiny_passages

from edge_svd.calibrate.passage_moments import PassageMoments, random_signs
from edge_svd.calibrate.passages import passages_from
from edge_svd.calibrate.run_passages import calibrate_passages, passage_key
from edge_svd.calibrate.sources import parse_source
from edge_svd.calibrate.statistics import Statistics
from edge_svd.encoders.architecture import WORDS
from edge_svd.encoders.opened import OpenedEncoder, open_encoder
from edge_svd.encoders.pooling import PADDING, embeddings, hidden_states, pooled
from edge_svd.errors import Failure, InputError
from edge_svd.planner.held_out_cosine import HeldOutCosine, passage_losses
from edge_svd.planner.loss import quadratic
from edge_svd.planner.narrow import Narrow

SITES = ("encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.value", "encoder.layer.1.output.dense")


@pytest.fixture(scope="module", params=["mean", "cls"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenedEncoder:
    return open_encoder(str(tiny_encoder(tmp_path_factory.mktemp("model") / "bert", request.param)))


def two_passages(opened: OpenedEncoder) -> torch.Tensor:
    """Of unequal length, so that one is padded."""
    return torch.tensor([[2, 10, 11, 12, 13, 14, 3], [2, 20, 21, 3, PADDING, PADDING, PADDING]])


def exact(opened: OpenedEncoder, ids: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One passage without padding: inputs X [tokens, n] and J [hidden, tokens, m], the embedding's Jacobian at y."""
    kept: dict[str, torch.Tensor] = {}

    def keep(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        kept["x"], kept["y"] = arguments[0].detach()[0], output.detach().requires_grad_(True)
        return kept["y"]

    handle = opened.model.get_submodule(name).register_forward_hook(keep)
    hidden = opened.model(input_ids=ids[None]).last_hidden_state[0]
    handle.remove()
    vector = hidden.mean(0) if opened.architecture.pooling == "mean" else hidden[0]
    vector = vector / vector.norm()
    rows = [torch.autograd.grad(value, kept["y"], retain_graph=True)[0][0] for value in vector]
    return kept["x"], torch.stack(rows)


def with_all_signs(opened: OpenedEncoder, passages: torch.Tensor) -> PassageMoments:
    """Every row of a Hadamard matrix in turn: their mean of r rᵀ is the identity exactly, as that of random signs is
    on average."""
    moments = PassageMoments(opened.architecture)
    for row in scipy.linalg.hadamard(opened.architecture.hidden_size):
        signs = torch.from_numpy(np.tile(row, (len(passages), 1))).float()
        moments.add(opened.model, passages, signs)
    return moments


@pytest.mark.parametrize("name", SITES)
def test_metrics_are_those_of_the_exact_jacobian(opened: OpenedEncoder, name: str) -> None:
    passages = two_passages(opened)
    moments = with_all_signs(opened, passages)
    c_in, c_out, apart, power = 0.0, 0.0, 0.0, 0.0
    for row in passages:
        x, jacobian = exact(opened, row[row != PADDING], name)
        # G of every entry of the embedding: sum over tokens of g xᵀ.
        whole = torch.einsum("dtm,tn->dmn", jacobian.double(), x.double())
        c_out = c_out + torch.einsum("dmn,dkn->mk", whole, whole) / len(passages)
        c_in = c_in + torch.einsum("dmn,dmk->nk", whole, whole)
        power += float(whole.square().sum())
        apart += float((jacobian.double().square().sum((0, 2)) * x.double().square().sum(1)).sum())
    assert torch.allclose(moments.c_out(name).double(), c_out, rtol=1e-3, atol=1e-5 * float(c_out.abs().max()))
    expected = c_in / power
    assert torch.allclose(moments.c_in(name).double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert moments.noise_share(name) == pytest.approx(apart / power, rel=1e-3)


def test_words_are_those_of_the_exact_jacobian(opened: OpenedEncoder) -> None:
    passages = two_passages(opened)
    moments = with_all_signs(opened, passages)
    expected = torch.zeros(64, 64, dtype=torch.float64)
    for row in passages:
        _, jacobian = exact(opened, row[row != PADDING], "embeddings.word_embeddings")
        rows = jacobian.double().flatten(0, 1)
        expected += rows.T @ rows / len(passages)
    assert torch.allclose(moments.c_out(WORDS).double(), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_rare_words_count_by_what_they_move(opened: OpenedEncoder) -> None:
    passages = two_passages(opened)
    moments = with_all_signs(opened, passages)
    power = torch.zeros(opened.architecture.vocab_size, dtype=torch.float64)
    for row in passages:
        ids = row[row != PADDING]
        _, jacobian = exact(opened, ids, WORDS)
        power.index_add_(0, ids, jacobian.double().square().sum((0, 2)) * 64)
    assert torch.allclose(moments.power, power, rtol=1e-3, atol=1e-5 * float(power.max()))
    assert moments.seen.tolist() == [64.0 * float((passages == token).sum()) for token in range(len(power))]
    frequency = torch.zeros_like(power)
    frequency[[2, 3, 10, 11]] = torch.tensor([0.4, 0.4, 0.15, 0.05], dtype=torch.float64)
    shares = moments.word_shares(frequency)
    assert float(shares.sum()) == pytest.approx(1)
    assert (shares > 0).all()  # what the text lacks counts too
    # Seen often, a token counts by its own gradients.
    own = power / moments.seen
    ratio = float(shares[10] / shares[11])
    assert ratio == pytest.approx(float(own[10] / own[11]) * 0.15 / 0.05, rel=0.25)


def test_metrics_predict_small_errors(opened: OpenedEncoder) -> None:
    """½ E⟨G, E⟩² is 1 - cosine of a small error: by signs, and by the metrics where an error has no direction."""
    name = SITES[1]
    text = passages_of(opened, 32)
    module = opened.model.get_submodule(name)
    moments = PassageMoments(opened.architecture)
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        moments.add(opened.model, text, random_signs(len(text), 64, generator))
    meter = HeldOutCosine(opened.model, opened.architecture, text)
    assert meter.measure() < 1e-12
    measured, predicted, by_signs = [], [], []
    for seed in range(12):
        error = 2e-3 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(seed))
        original = module.weight.data
        module.weight.data = original - error
        measured.append(meter.measure())
        module.weight.data = original
        predicted.append(quadratic(error, moments.c_in(name), moments.c_out(name)))
        losses = [
            passage_losses(opened.model, opened.architecture, text, {name: [Narrow.of(error)]}, draw)[name][0]
            for draw in range(4)
        ]
        by_signs.append(float(np.mean(losses)))
    assert np.mean(by_signs) == pytest.approx(np.mean(measured), rel=0.25)
    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.25)


def passages_of(opened: OpenedEncoder, count: int) -> torch.Tensor:
    backend = opened.tokenizer.backend_tokenizer
    rows = [backend.encode(text).ids[:24] for text in tiny_passages(count)]
    found = torch.full((count, 24), PADDING)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row)
    return found


def test_padding_counts_nowhere(opened: OpenedEncoder) -> None:
    passages = two_passages(opened)
    wider = torch.nn.functional.pad(passages, (0, 9), value=PADDING)
    found, again = with_all_signs(opened, passages), with_all_signs(opened, wider)
    assert again.tokens == found.tokens == 64 * 11
    for name in SITES:
        assert torch.allclose(found.c_in(name), again.c_in(name), rtol=1e-3, atol=1e-6)
        scale = float(found.c_out(name).abs().max())
        assert torch.allclose(found.c_out(name), again.c_out(name), rtol=1e-3, atol=1e-5 * scale)
    alone = pooled(*hidden_states(opened.model, passages[1:, :4]), opened.architecture.pooling)
    assert torch.allclose(embeddings(opened.model, wider, opened.architecture.pooling)[1:], alone, atol=1e-5)


def test_statistics_on_disk_are_what_was_summed(opened: OpenedEncoder, passage_file: Path, tmp_path: Path) -> None:
    sources = [parse_source(str(passage_file))]
    text = passages_from(sources, opened, longest=16, count=24, seed=0)
    assert text.ids.shape == (24, 16) and text.frequency.sum() == pytest.approx(1)
    assert all(row[0] == 2 and row[row != PADDING][-1] == 3 for row in text.ids)  # [CLS] and [SEP] of every passage
    key = passage_key(opened.digest, opened.tokenizer_digest, text.source_digest, (24, 16), 0)
    out = tmp_path / "statistics"
    arguments = (opened.model, opened.architecture, torch.from_numpy(text.ids), text.frequency, key, out)
    found = calibrate_passages(*arguments)
    assert found.of_passages and len(found.held_out()) == 3
    for site in opened.sites:
        own = found.c_out(site)
        assert torch.equal(own, own.T) and float(torch.linalg.eigvalsh(own).min()) > -1e-6 * float(own.max())
        if site.type != "embedding":
            assert float(found.c_in(site).diagonal().sum()) == pytest.approx(1, rel=1e-4)
            assert 0 < found.noise_share(site)
    before = (out / "statistics.json").stat().st_mtime_ns
    assert calibrate_passages(*arguments).key == found.key
    assert (out / "statistics.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another model, text"):
        calibrate_passages(*arguments[:4], key | {"seed": 1}, out)
    assert isinstance(Statistics.open(out), Statistics)


def test_what_cannot_calibrate_is_refused(opened: OpenedEncoder, passage_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="writes no text"):
        passages_from([parse_source("self")], opened, longest=16, count=24, seed=0)
    short = tmp_path / "short.txt"
    short.write_text("river\n\nstone\n")
    with pytest.raises(InputError, match="2 passages"):
        passages_from([parse_source(str(short))], opened, longest=16, count=24, seed=0)
    with pytest.raises(InputError, match="at least 16"):
        passages_from([parse_source(str(passage_file))], opened, longest=16, count=3, seed=0)


def test_broken_weights_are_named(tiny_bert: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    opened.model.get_parameter("encoder.layer.0.output.dense.weight").data[0, 0] = float("nan")
    moments = PassageMoments(opened.architecture)
    with pytest.raises(Failure, match="NaN"):
        moments.add(opened.model, two_passages(opened), torch.ones(2, 64))
