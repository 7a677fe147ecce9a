"""Seconds that decoding one token takes, from the products of a plan.

Where a profile was measured, a product costs a launch and a time per weight that depends on bits and block (cold: the
weights of a model are read once a token), a layer costs what surrounds its products, and attention reads the cache.
Where a profile comes from data sheets only bandwidth is known: every resident byte is read once, nothing else counts,
so the speed is an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_svd.architectures import Site, sites_of
from edge_svd.described import Described
from edge_svd.devices import Profile
from edge_svd.formats import SiteFormat
from edge_svd.fusing import merges
from edge_svd.planner.memory import FLOAT_BYTES, cache_bytes, product_bytes
from edge_svd.planner.products import Product, calls, multiplied


def product_seconds(product: Product, profile: Profile) -> float:
    """One row of input through one product, its weights not in a cache."""
    if profile.speed is None:
        return (product_bytes(product, profile.memory) - profile.memory.product_bytes) / profile.device.usable_bandwidth
    return profile.speed.launch_s + product.weights * profile.speed.weight_seconds(product.bits, product.shared)


def matrix_seconds(shape: tuple[int, int], fmt: SiteFormat, profile: Profile) -> float:
    """All products of an m x n matrix: what the solver trades in."""
    return sum(product_seconds(p, profile) for p in calls(shape, fmt).products)


def merged_seconds(profile: Profile) -> float:
    """What is saved where a matrix is computed in the product of another one that reads the same input."""
    return 0.0 if profile.speed is None else profile.speed.launch_s


def prompt_matrix_seconds(site: Site, fmt: SiteFormat, profile: Profile) -> float:
    """What a matrix takes of every token of a prompt; nothing for the vocabulary's, which see its last token alone."""
    if profile.speed is None or site.type in ("embedding", "lm_head"):
        return 0.0
    speed = profile.speed
    return sum(p.weights * speed.prompt_seconds(p.bits, p.shared) for p in calls(site.shape, fmt).products)


def prefill_seconds(architecture: Described, formats: Mapping[str, SiteFormat], profile: Profile) -> float | None:
    """Predicted seconds a token of a prompt of 512 in passes of 128; None where the profile says nothing of that."""
    if profile.speed is None or not profile.speed.knows_prompts:
        return None
    own = (site for site in sites_of(architecture) if not site.tied_to)
    products = sum(prompt_matrix_seconds(site, formats[site.name], profile) for site in own)
    return products + architecture.num_layers * profile.speed.prompt_layer_s


def other_seconds(architecture: Described, profile: Profile, context: int) -> float:
    """Everything but the products: attention over `context` cached tokens, norms, activations, choosing the token.

    What attention takes is proportional to the numbers in the cache, whatever they are: onnxruntime 1.32 reads those of
    int8 no faster than those of float32.
    """
    cache = cache_bytes(architecture, context, FLOAT_BYTES)
    if profile.speed is None:
        return cache / profile.device.usable_bandwidth
    return profile.speed.layer_s * architecture.num_layers + profile.speed.cache_byte_s * cache


def decode_seconds(architecture: Described, formats: Mapping[str, SiteFormat], profile: Profile, context: int) -> float:
    """Predicted seconds a token with `context` tokens in the cache."""
    products = sum(
        matrix_seconds(site.shape, formats[site.name], profile)
        for site in sites_of(architecture)
        if multiplied(site, architecture)
    )
    saved = merges(architecture, formats) * merged_seconds(profile)
    return products - saved + other_seconds(architecture, profile, context)
