"""One window through the model and back: second moments at the input and output of every matrix.

Weights are frozen, so the backward pass keeps no weight gradients; logits exist for a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site
from edge_svd.calibrate.cotangents import blocks, passes
from edge_svd.errors import Failure
from edge_svd.kernels import kl_seeds
from edge_svd.kernels.symmetric import SymmetricAccumulator

CPU = torch.device("cpu")
LOGIT_BLOCK = 32

SLIM_ABOVE = 2**16
"""Activations smaller than this are not worth keeping in half precision."""


@dataclass(frozen=True)
class Estimator:
    """How the output metric is estimated; see `cotangents`.

    `weighted`: an input's second moment weights each token by the summed ‖g‖² of the matrices that read it, so that
    tokens that the output does not react to (massive activations of a first position) no longer dominate. With the
    default 128 windows that is worth 2% of the loss; below about 30 windows the plain moment, less noisy, is better
    (benchmarks/estimators.py).
    """

    kind: str = "sampled"
    samples: int = 1
    k: int = 8
    weighted: bool = True
    precision: str = "float32"

    @property
    def passes(self) -> int:
        """Backward passes a window takes."""
        return passes(self.kind, self.samples, self.k)

    @property
    def scale(self) -> float:
        """What gradients are multiplied with, so that passes add up to the mean of the draws."""
        return self.samples**-0.5 if self.kind == "sampled" else 1.0


class Moments:
    """Accumulators of a run: `inputs` by input key, `outputs` by site, plus what the embedding and the head need."""

    def __init__(
        self, sites: Sequence[Site], inner: Sequence[Site] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """inner: the matrices between embedding and head that are accumulated at, by default all."""
        self.inner = inner_sites(sites) if inner is None else list(inner)
        self.embedding = next(site for site in sites if site.type == "embedding")
        self.head = next(site for site in sites if site.type == "lm_head")

        def accumulator(width: int) -> SymmetricAccumulator:
            return SymmetricAccumulator(width, device=device)

        self.inputs = {site.input: accumulator(site.shape[1]) for site in [*self.inner, self.head]}
        self.outputs = {site.name: accumulator(site.shape[0]) for site in self.inner}
        self.outputs[self.embedding.name] = accumulator(self.embedding.shape[1])
        self.head_variance = torch.zeros(self.head.shape[0], dtype=torch.float64, device=device)
        self.frequency = torch.zeros(self.embedding.shape[0], dtype=torch.float64, device=device)
        self.tokens = 0

    def add_variance(self, variance: torch.Tensor) -> None:
        """Of the logits [vocabulary], summed over some positions; see `pulled`."""
        self.head_variance += variance

    def add_ends(self, states: torch.Tensor, ids: torch.Tensor) -> None:
        """A window's last hidden states [tokens, hidden] and its tokens."""
        self.inputs[self.head.input].add(states)
        self.frequency.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float64))
        self.tokens += len(ids)


def mean(total: torch.Tensor, divisor: float) -> torch.Tensor:
    """A sum over what was counted; as it is where nothing was."""
    return total / (divisor if divisor > 0 else 1.0)


def inner_sites(sites: Sequence[Site]) -> list[Site]:
    """The matrices between embedding and head."""
    return [site for site in sites if site.type not in ("embedding", "lm_head")]


class Once:
    """One bfloat16 copy of a tensor that is wanted several times in a row."""

    def __init__(self) -> None:
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None

    def narrow(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in bfloat16. The last original is kept, so that its address means itself."""
        if self.last is not None:
            known, copy = self.last
            same = known.data_ptr() == tensor.data_ptr() and known._version == tensor._version
            if same and known.shape == tensor.shape and known.stride() == tensor.stride():
                return copy
        copy = tensor.to(torch.bfloat16)
        self.last = (tensor, copy)
        return copy


@contextmanager
def watching(
    model: Any, sites: Sequence[Site], seen: Callable[[Site, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Calls seen(site, x [tokens, n], g [tokens, m]) for every matrix, during the backward pass.

    Where autocast computes in bfloat16, x is what it multiplied: the input rounded to that.
    """
    handles = []
    once = Once()

    def watch(site: Site) -> Callable[..., None]:
        def forward(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = arguments[0].detach()
            if output.dtype == torch.bfloat16:
                x = once.narrow(x)
            output.register_hook(lambda g: seen(site, x.flatten(0, -2), g.detach().flatten(0, -2)))

        return forward

    for site in sites:
        handles.append(model.get_submodule(site.name).register_forward_hook(watch(site)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def finite(x: torch.Tensor) -> bool:
    """Whether every entry is: a sum is not where one is not."""
    return bool(torch.isfinite(x.sum()))


def running_in(precision: str, device: torch.device = CPU) -> torch.autocast:
    """A context in which layers compute in "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def leaf_at(model: Any, embedding: str, on_gradient: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Graphs start at the embedding's output, whose gradient [tokens, hidden] is shown to `on_gradient`."""

    def start(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_(True)
        leaf.register_hook(lambda g: on_gradient(g.detach().flatten(0, -2)))
        return leaf

    handle = model.get_submodule(embedding).register_forward_hook(start)
    try:
        yield
    finally:
        handle.remove()


def last_hidden(
    model: Any,
    ids: torch.Tensor,
    embedding: str,
    on_gradient: Callable[[torch.Tensor], None],
    precision: str = "float32",
) -> torch.Tensor:
    """Final hidden states [1, tokens, hidden] with a graph that starts at the embedding's output."""
    with leaf_at(model, embedding, on_gradient), torch.enable_grad(), running_in(precision, ids.device):
        body = model.get_submodule(embedding.partition(".")[0])
        hidden = body(input_ids=ids[None], use_cache=False).last_hidden_state
    return hidden.float()


def logits_of(model: Any, hidden: torch.Tensor, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor | None]:
    """fp32 logits [tokens, vocabulary] and d logits / d (head output), None where the two are the same."""
    raw = model.lm_head(hidden).float()
    if not finite(raw):
        raise Failure("The logits (site lm_head) hold NaN or Inf on the calibration text.")
    softcap, divisor = architecture.logit_softcap, architecture.logit_divisor
    slope = None
    if divisor != 1.0:
        raw, slope = raw / divisor, torch.tensor(1.0 / divisor, device=raw.device)
    if not softcap:
        return raw, slope
    bounded = torch.tanh(raw / softcap)
    return bounded * softcap, (1 - bounded.square()) / divisor


def pull_back(model: Any, seed: torch.Tensor, slope: torch.Tensor | None, precision: str) -> torch.Tensor:
    """Cotangents at the logits [tokens, vocabulary] to the head's input [tokens, hidden], fp32."""
    seed = seed if slope is None else seed * slope
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return (seed.to(dtype) @ model.lm_head.weight.to(dtype)).float()


def pulled(
    model: Any,
    architecture: Architecture,
    states: torch.Tensor,
    estimator: Estimator,
    index: int,
    generator: torch.Generator,
    seen: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Cotangents of one pass at the logits, pulled back to the head's input, as `states` [tokens, hidden].

    `seen` is shown the variances of the logits [vocabulary], summed over every block of positions.
    """
    pull = torch.empty_like(states)
    with torch.no_grad():
        for block in blocks(len(states), LOGIT_BLOCK):
            logits, slope = logits_of(model, states[block], architecture)
            if estimator.kind == "sampled":
                uniform = torch.rand(len(logits), 1, generator=generator)
                seeds, variance = kl_seeds.sampled(logits, uniform.to(logits.device), slope)
                pull[block] = pull_back(model, seeds, None, estimator.precision)
            else:
                signs = torch.randint(0, 2, (len(logits), 1), generator=generator).float() * 2 - 1
                pull[block] = _exact(model, logits, slope, estimator, index, signs.to(logits.device))
                variance = logits if seen is None else kl_seeds.variance(logits, slope)
            if seen is not None:
                seen(variance)
    return pull


def _exact(
    model: Any, logits: torch.Tensor, slope: torch.Tensor | None, estimator: Estimator, index: int, signs: torch.Tensor
) -> torch.Tensor:
    """A pass of the `top-k` estimator at the head's input: only k rows of the head a position are read."""
    top = kl_seeds.top(logits, estimator.k)
    seeds = kl_seeds.exact(top, index, signs)
    if slope is not None:
        seeds = seeds * (slope.gather(1, top.places) if slope.ndim else slope)
    dtype = torch.bfloat16 if estimator.precision == "bfloat16" else torch.float32
    rows = model.lm_head.weight[top.places].to(dtype)
    return torch.bmm(seeds[:, None].to(dtype), rows)[:, 0].float()


def check_finite(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
    """Failure naming the site if its activations or gradients are not finite."""
    for what, value in (("activations", x), ("gradients", g)):
        if not finite(value):
            raise Failure(f"The {what} at {site.name} hold NaN or Inf on the calibration text.")


@contextmanager
def checking_inputs(model: Any, sites: Sequence[Site]) -> Iterator[None]:
    """Failure naming the first site, in forward order, whose input is not finite."""

    def check(site: Site) -> Callable[..., None]:
        def before(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            if not finite(arguments[0]):
                raise Failure(f"The activations at {site.name} hold NaN or Inf on the calibration text.")

        return before

    handles = [model.get_submodule(site.name).register_forward_pre_hook(check(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def slim_graph(smallest: int = SLIM_ABOVE) -> Iterator[None]:
    """Keep activations of at least `smallest` numbers for the backward pass in bfloat16, half the memory of a window.

    The rounding is even and 2⁻⁹ of each entry, far below the sampling noise of a window. Weights are left alone.
    """

    once = Once()

    def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        slim = tensor.requires_grad and tensor.dtype == torch.float32 and tensor.numel() >= smallest
        return once.narrow(tensor.detach()) if slim else tensor, slim

    def unpack(kept: tuple[torch.Tensor, bool]) -> torch.Tensor:
        tensor, slim = kept  # what autocast computed in bfloat16 stays so
        return tensor.float() if slim else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class Collector:
    """Adds what backward passes show at matrices to their accumulators; a pass shows every matrix once."""

    def __init__(
        self,
        sites: Sequence[Site],
        inputs: Mapping[str, SymmetricAccumulator],
        outputs: Mapping[str, SymmetricAccumulator],
        estimator: Estimator,
    ) -> None:
        """sites: all that read an input of theirs."""
        self.inputs, self.outputs, self.estimator = inputs, outputs, estimator
        self.readers: dict[str, int] = {}
        for site in sites:
            self.readers[site.input] = self.readers.get(site.input, 0) + 1
        self.waiting: dict[str, tuple[int, torch.Tensor]] = {}
        self.index = 0
        """Number of the backward pass."""

    def seen(self, site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        """x [tokens, n] and g [tokens, m] of a matrix; Failure where they are not finite."""
        check_finite(site, x, g)
        g = g.float() * self.estimator.scale
        self.outputs[site.name].add(g)
        power = g.square().sum(1)
        arrived, total = self.waiting.pop(site.input, (0, torch.zeros_like(power)))
        if arrived + 1 < self.readers[site.input]:
            self.waiting[site.input] = (arrived + 1, total + power)
        elif self.estimator.weighted:
            self.inputs[site.input].add(x, weight=total + power)
        elif self.index == 0:
            self.inputs[site.input].add(x)


def add_window(
    model: Any,
    architecture: Architecture,
    moments: Moments,
    ids: torch.Tensor,
    estimator: Estimator,
    generator: torch.Generator,
) -> None:
    """Accumulate one window of token ids [tokens]; Failure naming the site where something is not finite."""
    count = estimator.passes
    collector = Collector(moments.inner, moments.inputs, moments.outputs, estimator)
    embedding = moments.outputs[moments.embedding.name]
    with watching(model, moments.inner, collector.seen), checking_inputs(model, moments.inner):
        with slim_graph():
            hidden = last_hidden(
                model, ids, moments.embedding.name, lambda g: embedding.add(g * estimator.scale), estimator.precision
            )
        states = hidden.detach()[0]
        for index in range(count):
            collector.index = index
            pull = pulled(
                model, architecture, states, estimator, index, generator, moments.add_variance if index == 0 else None
            )
            hidden.backward(pull[None], retain_graph=index + 1 < count)
    moments.add_ends(states, ids)


def add_gradients(
    model: Any,
    architecture: Architecture,
    sites: Sequence[Site],
    of_window: Callable[[Site, torch.Tensor], None],
    ids: torch.Tensor,
    precision: str = "float32",
) -> None:
    """Calls of_window(site, ∂L/∂W [m, n]) for every inner matrix, L the summed next-token cross-entropy of one window,
    in nats."""

    def seen(site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        check_finite(site, x, g)
        of_window(site, g.float().T @ x.float())

    embedding = next(site.name for site in sites if site.type == "embedding")
    with watching(model, inner_sites(sites), seen):
        with slim_graph():
            hidden = last_hidden(model, ids, embedding, lambda g: None, precision)
        hidden.backward(pulled_loss(model, architecture, hidden.detach()[0], ids, precision)[None])


def pulled_loss(
    model: Any, architecture: Architecture, states: torch.Tensor, ids: torch.Tensor, precision: str
) -> torch.Tensor:
    """Gradient of the summed next-token cross-entropy, nats, at the head's input `states` [tokens, hidden]."""
    pull = torch.zeros_like(states)
    with torch.no_grad():
        for block in blocks(len(states) - 1, LOGIT_BLOCK):
            logits, slope = logits_of(model, states[block], architecture)
            seed = torch.softmax(logits, dim=-1)
            targets = ids[block.start + 1 : block.stop + 1, None]
            seed.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=seed.dtype))
            pull[block] = pull_back(model, seed, slope, precision)
    return pull
