"""Matrices in the groups in which they are decomposed: together on a card, each on its own otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from edge_svd.architectures import Site
from edge_svd.compute_device import compute_device, free_bytes
from edge_svd.decompose import decompose, decompose_together
from edge_svd.parallel import ahead, side_by_side
from edge_svd.planner.generators import SiteContext

SHARE = 4
"""A group may take a quarter of the card's free memory: the next one is read while it is worked on, and pricing needs
as much again."""

Made = Callable[[], SiteContext]
"""Gives a matrix's context. It is let go with the last look at it, so that those of a whole model never exist at once.
"""

Result = TypeVar("Result")


def of_each(
    sites: Sequence[Site], context: Callable[[Site], SiteContext], work: Callable[[SiteContext], Result]
) -> Iterator[Result]:
    """`work` of every site's context, in order, as many side by side as there are threads."""
    for made in batches(sites, context):
        yield from side_by_side(lambda of: work(of()), made)


def batches(sites: Sequence[Site], context: Callable[[Site], SiteContext]) -> Iterator[list[Made]]:
    """Contexts of all sites, in order. On a CPU in one group, in which nothing is computed yet: that is for the threads
    that look at them. On a card in groups of one shape, as many as fit, with their factors made together, while the
    statistics of the next group are read."""
    device = compute_device()
    if device.type == "cpu":
        yield [partial(context, site) for site in sites]
        return

    def read(group: list[Site]) -> list[SiteContext]:
        return [_loaded(context(site)) for site in group]

    for contexts in ahead(read, grouped(sites, free_bytes(device) // SHARE)):
        inner = [of for of in contexts if not of.roles]
        if inner:
            with torch.no_grad():
                found = decompose_together(inner[0].method, [of.matrix for of in inner], inner)
            for of, factorization in zip(inner, found, strict=True):
                of.__dict__["factorization"] = factorization
        yield [partial(_same, of) for of in contexts]


def _same(context: SiteContext) -> SiteContext:
    return context


def _loaded(context: SiteContext) -> SiteContext:
    """With what decomposition and pricing read on the device; a table's metrics stay where its rounding is."""
    if not context.roles:
        for name in ("matrix", "c_in", "c_out", *decompose(context.method).needs):
            getattr(context, name)
    return context


def grouped(sites: Sequence[Site], most: int) -> list[list[Site]]:
    """Neighbours of one shape whose decomposition takes at most so many bytes together; at least one a group."""
    groups: list[list[Site]] = []
    for site in sites:
        last = groups[-1] if groups else []
        if last and last[0].shape == site.shape and (len(last) + 1) * working_bytes(site.shape) <= most:
            last.append(site)
        else:
            groups.append([site])
    return groups


def working_bytes(shape: tuple[int, int]) -> int:
    """Of one decomposition, float64: both metrics, their factors and a copy, the Gram matrix with its eigenvectors and
    the library's workspace, and six matrices."""
    m, n = shape
    return 8 * (3 * m * m + 3 * n * n + 4 * min(m, n) ** 2 + 6 * m * n)
