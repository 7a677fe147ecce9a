"""Which matrices are measured together, and what a measurement corrects."""

from __future__ import annotations

import math

import pytest

from edge_svd.architectures import Site
from edge_svd.formats import SiteFormat
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import LEAST_FACTOR, RANGE, SHARE, THIN_SHARE, factor, ratio, together
from edge_svd.planner.survey import corrected

SHAPE = (1000, 1000)
"""Factors of rank k have k / 500 of the dense int8 matrix's numbers."""


def site(kind: str, layer: int) -> Site:
    return Site(f"model.layers.{layer}.{kind}", kind, layer, (16, 16), "", "", False)


@pytest.mark.parametrize("kind", ["q", "k", "v", "qkv", "o"])
def test_what_reads_the_token_alone_is_measured_alone(kind: str) -> None:
    sites = [site(kind, layer) for layer in range(3)]
    assert together(sites) == [sites[:1], sites[1:]]


def test_the_others_of_a_type_are_measured_together() -> None:
    sites = [site("down", layer) for layer in range(3)]
    assert together(sites) == [sites]


def test_one_bit_has_a_factor_of_its_own() -> None:
    formats = [SiteFormat("trellis", bits=1), SiteFormat("trellis", bits=2), SiteFormat("low-rank", k8=16)]
    found = [Candidate(fmt, 100, 1.0, 1.0) for fmt in (*formats, SiteFormat("int8"))]
    factors = {"coded": {"a": 2.0}, "factored": {"a": 3.0}, "one-bit": {"a": 5.0}}
    assert [c.loss for c in corrected(found, "a", SHAPE, factors, in_kl=True)] == [5.0, 2.0, 3.0, 1.0]
    assert [c.loss for c in corrected(found, "a", SHAPE, {"coded": {"a": 2.0}}, in_kl=True)] == [2.0, 2.0, 1.0, 1.0]
    assert [c.score for c in corrected(found, "a", SHAPE, factors, in_kl=False)] == [1.0] * 4


def test_few_components_have_a_factor_of_their_own() -> None:
    factors = {"factored": {"a": 2.0}, "thin": {"a": 8.0}}
    ranks = {rank: SiteFormat("low-rank", k8=rank) for rank in (16, 48, 144, 304, 400)}
    found = [Candidate(fmt, 100, 1.0, 1.0) for fmt in ranks.values()]
    made = [c.loss for c in corrected(found, "a", SHAPE, factors, in_kl=True)]
    between = [8.0 * 0.25 ** (math.log(rank / 500 / THIN_SHARE) / math.log(SHARE / THIN_SHARE)) for rank in (144,)]
    assert made == pytest.approx([8.0, 8.0, *between, 2.0, 2.0])
    assert 2.0 < made[2] < 8.0
    coded = [Candidate(SiteFormat("trellis", bits=2), 100, 1.0, 1.0)]
    assert corrected(coded, "a", SHAPE, factors, in_kl=True)[0].loss == 1.0


def test_factors_have_limits() -> None:
    assert factor(1.0, 0.5) == 2.0
    assert (factor(0.0, 1.0), factor(1e9, 1.0), factor(1.0, 0.0)) == (*RANGE, 1.0)
    assert (ratio(100.0, 1.0), ratio(0.0, 1.0), ratio(1.0, 0.0)) == (100.0, LEAST_FACTOR, 1.0)
