"""The metrics of an encoder's matrices, from passages and random signs.

Its loss is 1 - cosine of two embeddings of length one, ½ ‖δe‖² = ½ E[(rᵀ δe)²] for a vector r of independent signs. An
error E of a matrix moves rᵀ e by Σ_t g_tᵀ E x_t = ⟨G, E⟩ over the tokens t of a passage, G = Σ_t g_t x_tᵀ and g the
gradient of rᵀ e. Pooling adds up what all tokens do, so their products are added before they are squared:

    ½ E⟨G, E⟩² ≈ ½ tr(C_out E C_in Eᵀ),   C_out = E[G Gᵀ],   C_in = E[Gᵀ G] / E‖G‖²

(two sides of one Kronecker product as in Shampoo; with one token a passage, the decoders' weighted metric). G is never
formed: G Gᵀ = Gₘᵀ K Gₘ with Gₘ [tokens, m] the gradients and K = X Xᵀ of one passage. Padding has no gradient, so it
counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.encoders.architecture import WORDS, Encoder
from edge_svd.encoders.pooling import PADDING, hidden_states, pooled
from edge_svd.errors import Failure

UNSEEN_SHARE = 0.075
"""Of all text, in words that calibration text may lack: 2.6% of C4 and 2.8% of WikiText-2 are in the eleven thousand
tokens of BERT that 390,000 tokens of Wikipedia do not hold, out of thirty thousand."""

TRUSTED = 8
"""Times that a token has to be seen for its own ‖g‖² to count as much as that of others as rare."""

BATCH = 16
"""Passages of like length that run together."""

Seen = Callable[[Site, torch.Tensor, torch.Tensor], None]


@contextmanager
def watching_passages(model: Any, sites: Sequence[Site], seen: Seen) -> Iterator[None]:
    """Calls seen(site, x [batch, tokens, n], g [batch, tokens, m]) for every matrix, during the backward pass."""

    def watch(site: Site) -> Callable[..., None]:
        def forward(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = arguments[0].detach()
            output.register_hook(lambda g: seen(site, x, g.detach()))

        return forward

    handles = [model.get_submodule(site.name).register_forward_hook(watch(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pull_back_signs(
    model: Any,
    encoder: Encoder,
    passages: torch.Tensor,
    signs: torch.Tensor,
    on_words: Callable[[torch.Tensor], None] = lambda g: None,
) -> None:
    """One batch [batch, length] forward, and signs [batch, hidden] at its embeddings back to the table of words.

    Failure if an embedding is not finite.
    """

    def start(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_(True)
        leaf.register_hook(lambda g: on_words(g.detach()))
        return leaf

    handle = model.get_submodule(WORDS).register_forward_hook(start)
    try:
        with torch.enable_grad():
            found = pooled(*hidden_states(model, passages), encoder.pooling)
    finally:
        handle.remove()
    if not torch.isfinite(found.sum()):
        raise Failure("The embeddings hold NaN or Inf on the calibration text.")
    found.backward(signs)


def random_signs(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [count, width] of -1 and 1."""
    return torch.randint(0, 2, (count, width), generator=generator).float() * 2 - 1


def batches(passages: torch.Tensor, size: int = BATCH) -> Iterator[torch.Tensor]:
    """Passages [count, length], those of like length together, cut to the longest of each batch."""
    lengths = (passages != PADDING).sum(1)
    for rows in torch.argsort(lengths, stable=True).split(size):
        yield passages[rows, : int(lengths[rows].max())]


class PassageMoments:
    """Sums over passages: `inputs` of Gᵀ G, `outputs` of G Gᵀ by matrix, `apart` of ‖g‖² ‖x‖² over single tokens, and
    `words` of g gᵀ at the looked-up rows, whose errors differ from token to token; by token `power` of ‖g‖² there, and
    how often it was `seen`."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.inner = [site for site in encoder.sites if site.type != "embedding"]
        self.inputs = {site.name: torch.zeros(site.shape[1], site.shape[1]) for site in self.inner}
        self.outputs = {site.name: torch.zeros(site.shape[0], site.shape[0]) for site in self.inner}
        self.apart = {site.name: 0.0 for site in self.inner}
        self.words = torch.zeros(encoder.hidden_size, encoder.hidden_size)
        self.power = torch.zeros(encoder.vocab_size, dtype=torch.float64)
        self.seen = torch.zeros(encoder.vocab_size, dtype=torch.float64)
        self.passages = 0
        self.tokens = 0

    def add(self, model: Any, passages: torch.Tensor, signs: torch.Tensor) -> None:
        """Accumulate a batch [batch, length] with signs [batch, hidden]; Failure naming the site where something is
        not finite."""

        def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
            for what, value in (("activations", x), ("gradients", g)):
                if not torch.isfinite(value.sum()):
                    raise Failure(f"The {what} at {site.name} hold NaN or Inf on the calibration text.")
            by_inputs, by_outputs = x @ x.transpose(1, 2), g @ g.transpose(1, 2)
            self.inputs[site.name].addmm_(x.flatten(0, 1).T, (by_outputs @ x).flatten(0, 1))
            self.outputs[site.name].addmm_(g.flatten(0, 1).T, (by_inputs @ g).flatten(0, 1))
            powers = by_inputs.diagonal(dim1=1, dim2=2) * by_outputs.diagonal(dim1=1, dim2=2)
            self.apart[site.name] += float(powers.sum(dtype=torch.float64))

        def words(g: torch.Tensor) -> None:
            rows = g.flatten(0, 1)
            self.words.addmm_(rows.T, rows)
            kept = passages.flatten() != PADDING
            ids, powers = passages.flatten()[kept], rows.square().sum(1)[kept]
            self.power.index_add_(0, ids, powers.double())
            self.seen += torch.bincount(ids, minlength=len(self.seen))

        with watching_passages(model, self.inner, seen):
            pull_back_signs(model, self.encoder, passages, signs, words)
        self.passages += len(passages)
        self.tokens += int((passages != PADDING).sum())

    def c_in(self, name: str) -> torch.Tensor:
        """[n, n] float32, of trace one."""
        return self.inputs[name] / float(self.inputs[name].diagonal().sum().clamp_min(1e-300))

    def c_out(self, name: str) -> torch.Tensor:
        """[m, m] float32, per passage; of the table of words [hidden, hidden], summed over a passage's tokens."""
        return (self.words if name == WORDS else self.outputs[name]) / self.passages

    def word_shares(self, frequency: torch.Tensor) -> torch.Tensor:
        """Each token's share, float64 [vocabulary], of what errors in the table of words lose.

        Not its frequency alone: what an embedding says, it owes to rare words more than to articles and commas. A
        token's own ‖g‖² is trusted as far as it was seen, that of tokens about as rare otherwise; what the text lacks
        counts too.
        """
        smooth = (1 - UNSEEN_SHARE) * frequency.double() + UNSEEN_SHARE / len(frequency)
        rarity = (smooth / smooth.min()).log2().long()
        powers = torch.zeros(int(rarity.max()) + 1, dtype=torch.float64).index_add_(0, rarity, self.power)
        counts = torch.zeros(len(powers), dtype=torch.float64).index_add_(0, rarity, self.seen)
        mean = float(self.power.sum() / self.seen.sum())
        for level in reversed(range(len(powers))):
            # From frequent to rare: a level that was hardly seen takes over what is known of the one above it.
            mean = float((powers[level] + TRUSTED * mean) / (counts[level] + TRUSTED))
            powers[level] = mean
        expected = (self.power + TRUSTED * powers[rarity]) / (self.seen + TRUSTED)
        return smooth * expected / (smooth * expected).sum()

    def noise_share(self, name: str) -> float:
        """What errors that differ from token to token lose, as a share of what the same ones lose in all tokens."""
        return self.apart[name] / max(float(self.inputs[name].diagonal().sum(dtype=torch.float64)), 1e-300)
