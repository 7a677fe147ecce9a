"""What calibration hands to planning: second moments per input and output, and first-order gradients, on disk.

A folder with `statistics.json` (what they were computed from) and three folders of safetensors: `moments`

    in.<input key>      float32, upper strips     E[‖g‖² x xᵀ] / E[‖g‖²] (or E[x xᵀ]), [n, n] (`kernels.layout`)
    out.<site>          float32, upper strips     E[g gᵀ] per token, nats, the metric of the site's output
    head.variance       float64 [vocabulary]      E[p (1 − p)] per token
    token.frequency     float64 [vocabulary]      share of each token in the calibration text

Of an encoder (`passage_moments`) `in.` goes by site too, of trace one, `out.` is per passage in units of 1 - cosine,
`noise.<site>` [1] is what errors that differ from token to token lose as a share of equal ones, `token.frequency` is
each token's share in what errors of the table of words lose, and `head.variance` the same.

What only some methods look at lies in folders of its own, taken when it is first asked for (`EXTRAS`):

    activations/in.<input key>    float32, upper strips     E[x xᵀ], all tokens alike
    activations/size.<input key>  float32 [n]               E|x|
    gradients/<site>              bfloat16 [m, n]           ∂(nats per token)/∂W on windows that the moments did not see
    fisher/<site>                 float64 [m]               row sums of the mean over those of (∂(their nats)/∂W)²

`held_out` with `ids` int64 [count, window] are those windows, for checking predictions against measurements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.shards import read_tensor
from edge_svd.errors import InputError
from edge_svd.files import canonical_json, read_json
from edge_svd.kernels.symmetric import SymmetricAccumulator

Device: TypeAlias = torch.device | str

FORMAT = 3
MANIFEST = "statistics.json"
SIGNS = "signs"
"""The estimator of encoders (`passage_moments`): metrics of both sides belong to single matrices."""

MOMENTS = "moments"
ACTIVATIONS, GRADIENTS, FISHER = "activations", "gradients", "fisher"
EXTRAS = (ACTIVATIONS, GRADIENTS, FISHER)
_FOLDER_OF = {"moment": ACTIVATIONS, "magnitude": ACTIVATIONS, "gradient": GRADIENTS, "fisher": FISHER}
HELD_OUT = "held_out"


def extras_of(needs: Iterable[str]) -> set[str]:
    """The folders with the statistics that a method needs, by their names there (`decompose.Measured`)."""
    return {_FOLDER_OF[name] for name in needs}


def cache_key(key: Mapping[str, Any]) -> str:
    """Digest of all that statistics depend on: digests of model, tokenizer and text, window, count, seed, estimator."""
    return hashlib.sha256(canonical_json(dict(key))).hexdigest()


@dataclass(frozen=True)
class Statistics:
    """Statistics on disk, read one matrix at a time; metrics are float64 torch tensors, on the device asked for."""

    path: Path
    key: Mapping[str, Any]
    tokens: int

    @classmethod
    def open(cls, path: Path | str) -> Statistics:
        """Open a folder written by `calibrate`; InputError if it is missing, unfinished or of another version."""
        path = Path(path)
        manifest = read_json(path / MANIFEST, "statistics file")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"The statistics in {path} are of an unknown version; calibrate again with this edge-svd.")
        key = manifest.get("key")
        if (
            not isinstance(key, dict)
            or type(manifest.get("tokens")) is not int
            or cache_key(key) != manifest.get("digest")
        ):
            raise InputError(f"The statistics in {path} do not match their own digest; calibrate again.")
        return cls(path, key, manifest["tokens"])

    def require_model(self, digest: str, tokenizer_digest: str) -> None:
        """InputError unless these statistics belong to the model with these digests."""
        if self.key.get("model") != digest or self.key.get("tokenizer") != tokenizer_digest:
            raise InputError(
                f"The statistics in {self.path} were made from another model or tokenizer; calibrate this one."
            )

    def _tensor(self, file: str, name: str) -> torch.Tensor:
        return read_tensor(self.path / file, name)

    def _symmetric(self, name: str, n: int, folder: str = MOMENTS, device: Device = "cpu") -> torch.Tensor:
        accumulator = SymmetricAccumulator(n, device=device)
        try:
            accumulator.restore(self._tensor(folder, name), 1.0)
        except InputError as error:
            raise InputError(f"The statistics in {self.path} do not fit this model: {error}") from None
        return accumulator.full(torch.float64)

    @property
    def of_passages(self) -> bool:
        """Whether these are an encoder's, whose losses are 1 - cosine per passage."""
        return bool(self.key["estimator"].get("kind") == SIGNS)

    def c_in(self, site: Site, device: Device = "cpu") -> torch.Tensor:
        """[n, n] float64."""
        name = f"in.{site.name if self.of_passages else site.input}"
        return self._symmetric(name, site.shape[1], device=device)

    def c_out(self, site: Site, device: Device = "cpu") -> torch.Tensor:
        """[m, m] float64; for the embedding, the metric of its output [hidden, hidden]."""
        width = site.shape[1] if site.type == "embedding" else site.shape[0]
        return self._symmetric(f"out.{site.name}", width, device=device)

    def has(self, extra: str) -> bool:
        """Whether that one of `EXTRAS` was taken."""
        return (self.path / extra).exists()

    def _require(self, extra: str) -> None:
        if not self.has(extra):
            raise InputError(f"The statistics in {self.path} hold no {extra}; run `edge-svd calibrate` again.")

    def moment(self, site: Site, device: Device = "cpu") -> torch.Tensor:
        """[n, n] float64, E[x xᵀ] of all tokens alike: `c_in`, where that weighs them so (and of an encoder), otherwise
        taken on its own; InputError where it was not."""
        if self.of_passages or not self.key["estimator"].get("weighted", True):
            return self.c_in(site, device)
        self._require(ACTIVATIONS)
        return self._symmetric(f"in.{site.input}", site.shape[1], ACTIVATIONS, device)

    def magnitude(self, site: Site) -> torch.Tensor:
        """[n] float64, E|x|; InputError where it was not taken."""
        self._require(ACTIVATIONS)
        return self._tensor(ACTIVATIONS, f"size.{site.input}").double()

    def gradient(self, site: Site) -> torch.Tensor:
        """[m, n] float64, nats per token; InputError where they were not collected."""
        self._require(GRADIENTS)
        return self._tensor(GRADIENTS, site.name).double()

    def fisher(self, site: Site) -> torch.Tensor:
        """[m] float64; InputError where it was not taken."""
        self._require(FISHER)
        return self._tensor(FISHER, site.name)

    def held_out(self) -> torch.Tensor:
        """[count, window] int64, the windows that made the gradients."""
        return self._tensor(HELD_OUT, "ids")

    def head_metric(self, n: int) -> torch.Tensor:
        """[n, n] float64: the plain second moment of the head's input."""
        return self._symmetric("in.head", n)

    def head_variance(self) -> torch.Tensor:
        """[vocabulary] float64."""
        return self._tensor(MOMENTS, "head.variance")

    def noise_share(self, site: Site) -> float:
        """What errors that differ from token to token lose, as a share of what the metrics say of equal ones."""
        return float(self._tensor(MOMENTS, f"noise.{site.name}")[0]) if self.of_passages else 1.0

    def token_frequency(self) -> torch.Tensor:
        """[vocabulary] float64, sums to one."""
        return self._tensor(MOMENTS, "token.frequency")


def manifest_bytes(key: Mapping[str, Any], tokens: int) -> bytes:
    """The content of `statistics.json`."""
    return canonical_json({"format": FORMAT, "key": dict(key), "digest": cache_key(key), "tokens": tokens}, indent=1)
