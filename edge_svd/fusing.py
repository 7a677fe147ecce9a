"""Matrices that read the same input become one product where their formats let onnxruntime compute them together.

A product costs a launch and the rounding of its input to int8, whatever it multiplies with: queries, keys and values,
or gate and up, share both when their integers lie in memory in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from edge_svd.architectures import Site, sites_of
from edge_svd.described import Described
from edge_svd.formats import SiteFormat, padded


class Kernel(NamedTuple):
    """How the integers of a matrix lie in memory, and the kind of format that they come from."""

    kind: str
    bits: int
    block: int
    zero: bool


def kernel(site: Site, fmt: SiteFormat) -> Kernel | None:
    """The kernel of a matrix that is one product, None for one of several."""
    if fmt.kind in ("int8", "trellis"):
        return Kernel(fmt.kind, 8, fmt.inputs_a_block(padded(site.shape[1])), False)
    return Kernel(fmt.kind, fmt.bits, fmt.block, fmt.zero) if fmt.kind == "blocks" else None


def together(
    siblings: Iterable[Site], formats: Mapping[str, SiteFormat], biases: Collection[str] = ()
) -> list[tuple[Site, ...]]:
    """Matrices that read one input, divided into those that become one product; both orders are kept.

    `biases` names matrices that add a bias beyond those that the architecture says.
    """
    found: dict[object, list[Site]] = {}
    for site in siblings:
        own = kernel(site, formats[site.name])
        key = site.name if own is None else (own, site.bias or site.name in biases)
        found.setdefault(key, []).append(site)
    return [tuple(group) for group in found.values()]


def siblings_of(architecture: Described) -> list[tuple[Site, ...]]:
    """The matrices of every layer that read the same input, where there are several."""
    found: dict[str, list[Site]] = {}
    for site in sites_of(architecture):
        if site.layer >= 0:
            found.setdefault(site.input, []).append(site)
    return [tuple(group) for group in found.values() if len(group) > 1]


def fused(architecture: Described, formats: Mapping[str, SiteFormat]) -> list[tuple[Site, ...]]:
    """Every set of matrices of a model that becomes one product."""
    groups = [group for siblings in siblings_of(architecture) for group in together(siblings, formats)]
    return [group for group in groups if len(group) > 1]


def merges(architecture: Described, formats: Mapping[str, SiteFormat]) -> int:
    """How many matrices of a model are computed in the product of another one."""
    return sum(len(group) - 1 for group in fused(architecture, formats))


def joined(names: Sequence[str]) -> str:
    """A name for several matrices of one module: model.layers.0.mlp.gate_proj+up_proj."""
    return "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])
