"""Carry out a plan: round or factor every matrix as the plan says and write the checkpoint, one layer at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.statistics import Statistics
from edge_svd.checkpoint import (
    MANIFEST,
    NUMPY_DTYPES,
    WEIGHTS,
    Checkpoint,
    finish_checkpoint,
    has_weights,
    save_weights,
)
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, drop_leftovers, replace_folder, writing
from edge_svd.formats import MOST_PIVOTED, PIVOTED, SiteFormat, padded, tensors
from edge_svd.models import OpenedModel
from edge_svd.opening import Opened
from edge_svd.parallel import side_by_side
from edge_svd.planner.generators import SiteContext, corrected
from edge_svd.planner.generators.pivoted import rounded
from edge_svd.planner.generators.trellis import table_metric
from edge_svd.planner.kv_cache import rounded_cache
from edge_svd.planner.plan import Plan
from edge_svd.planner.views import context_of
from edge_svd.quantize.blocks import Blocked, pack_blocks, round_blocks
from edge_svd.quantize.components import round_components, to_low
from edge_svd.quantize.rows import round_rows
from edge_svd.quantize.table import TableMetric, dealt_as, round_table, row_noise
from edge_svd.quantize.trellis import Trellis, pack, round_trellis

Arrays = dict[str, np.ndarray[Any, Any]]
PARTIAL_KEY = "key.json"


def compress(
    opened: Opened,
    plan: Plan,
    statistics: Statistics,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    finished: Checkpoint | None = None,
) -> Checkpoint:
    """Write the checkpoint `out`; continue `out`.partial if an earlier run with the same plan was interrupted.

    `finished`: of the same model, statistics and method; matrices that it has in the plan's format are taken from it.

    Raises:
        InputError: the plan does not fit the model or the statistics, or `out` exists (replaced only with `force`,
            and only if it is a checkpoint).
        Failure: NaN or Inf in a weight, disk full.
    """
    plan.check(opened.sites)
    statistics.require_model(opened.digest, opened.tokenizer_digest)
    if out.exists() and not ((out / MANIFEST).exists() and force):
        what = (
            "exists; pass --force to replace it"
            if (out / MANIFEST).exists()
            else "exists and is not a checkpoint of ours"
        )
        raise InputError(f"The output folder {out} {what}.")
    partial = out.with_name(out.name + ".partial")
    key = canonical_json({"plan": hashlib.sha256(plan.to_bytes()).hexdigest(), "model": opened.digest})
    _start(partial, key)
    groups: dict[str, list[Site]] = {}
    for site in opened.sites:
        if not site.tied_to:
            groups.setdefault(f"layer-{site.layer:04d}" if site.layer >= 0 else "vocabulary", []).append(site)
    done = 0
    for stem, sites in groups.items():
        if not has_weights(partial, stem):
            arrays: Arrays = {}
            for made in side_by_side(lambda site: _arrays(opened, site, plan, statistics, finished), sites):
                arrays |= made
                done += 1
                progress(done, len(plan.sites))
            save_weights(partial, stem, arrays)
        else:
            done += len(sites)
    rest = opened.other_tensors()
    if plan.kv_cache == "int8" and isinstance(opened, OpenedModel):
        scales = rounded_cache(opened, statistics).scales
        rest |= {name: scale.numpy() for name, scale in scales.items()}
    save_weights(partial, "rest", rest)
    progress(len(plan.sites), len(plan.sites))
    source = {"model": opened.name, "digest": opened.digest}
    finish_checkpoint(partial, opened.architecture, plan.formats, plan.to_json(), source, opened.companions)
    (partial / PARTIAL_KEY).unlink(missing_ok=True)
    replace_folder(partial, out)
    return Checkpoint.open(out)


def is_of(path: Path, plan: Plan) -> bool:
    """Whether a folder holds the finished checkpoint of this very plan."""
    if not (path / MANIFEST).exists():
        return False
    return canonical_json(dict(Checkpoint.open(path).plan)) == canonical_json(plan.to_json())


def compressed(
    opened: Opened,
    plan: Plan,
    statistics: Statistics,
    out: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    finished: Checkpoint | None = None,
) -> Checkpoint:
    """The checkpoint of a plan at `out`: the one that an interrupted run has finished there, or made now; errors as
    `compress`."""
    if is_of(out, plan):
        return Checkpoint.open(out)
    return compress(opened, plan, statistics, out, force=True, progress=progress, finished=finished)


def _arrays(opened: Opened, site: Site, plan: Plan, statistics: Statistics, finished: Checkpoint | None) -> Arrays:
    """Of one matrix: read where it is finished, made otherwise."""
    fmt = plan.sites[site.name].format
    if finished is None or finished.formats[site.name].stored != fmt.stored:
        return site_arrays(opened, site, plan, statistics)
    names = [f"{site.name}.{suffix}" for suffix in tensors(site.shape, fmt)] + [f"{site.name}.bias"] * site.bias
    return {name: finished.tensor(name) for name in names}


def _start(partial: Path, key: bytes) -> None:
    """Keep an interrupted run's files only if they belong to the same plan and model."""
    with writing(partial):
        if not (partial / PARTIAL_KEY).exists() or (partial / PARTIAL_KEY).read_bytes() != key:
            for file in (partial / WEIGHTS).glob("*") if partial.is_dir() else ():
                file.unlink()
            atomic_write(partial / PARTIAL_KEY, key)
        drop_leftovers(partial / WEIGHTS)


def site_arrays(opened: Opened, site: Site, plan: Plan, statistics: Statistics) -> Arrays:
    """The stored tensors of one matrix, by full name."""
    module = opened.model.get_submodule(site.name)
    weight = module.weight.detach().cpu().float()
    fmt = plan.sites[site.name].format
    with torch.no_grad():
        if fmt.kind not in ("int8", "int16"):
            context = context_of(site, module, opened.architecture, statistics, plan.method, plan.allocation)
            parts = factored_parts(context, fmt) if fmt.factored else coded_parts(context, fmt)
        else:
            bits = 8 if fmt.kind == "int8" else 16
            q, scale = round_rows(_pad(weight), bits)
            parts = {f"q{bits}": q, f"s{bits}": scale}
    arrays = {f"{site.name}.{suffix}": _numpy(tensor) for suffix, tensor in parts.items()}
    for suffix, (dtype, shape) in tensors(site.shape, fmt).items():
        made = arrays[f"{site.name}.{suffix}"]
        if made.shape != shape or made.dtype != NUMPY_DTYPES[dtype]:
            raise InputError(
                f"The plan asks for {suffix} of {site.name} as {dtype} {shape}, which this matrix cannot give."
            )
    if site.bias:
        arrays[f"{site.name}.bias"] = module.bias.detach().cpu().float().numpy()
    return arrays


def coded_parts(context: SiteContext, fmt: SiteFormat) -> dict[str, torch.Tensor]:
    """The stored tensors of a matrix whose rounding looks at the metrics: in blocks, or trellis-coded, or a table."""
    if fmt.kind == "blocks":
        return _block_parts(rounded_blocks(context, fmt), fmt)
    if fmt.kind == "corrected":
        blocked, (b, a, factor_scale) = corrected.rounded(context, fmt)
        return {**_block_parts(blocked, fmt), "b8": b, "a8": _pad(a), "t8": factor_scale}
    if fmt.kind == "trellis":
        made = round_trellis(context.weight, context.inputs, context.outputs, fmt.bits)
        return {**_planes(made), "s8": made.scale, "order": torch.argsort(made.order).to(torch.uint16)}
    metric, groups = rounded_table(context, fmt)
    parts: dict[str, torch.Tensor] = {}
    scale = torch.empty(context.site.shape[0], dtype=torch.bfloat16)
    for width, (rows, made) in groups.items():
        parts |= {f"g{width}{suffix}": plane for suffix, plane in _planes(made).items()}
        scale[rows] = made.scale
    place = torch.argsort(torch.cat([rows for rows, _ in groups.values()]))
    narrow = torch.uint16 if len(scale) <= MOST_PIVOTED else torch.uint32
    order = torch.argsort(metric.inputs.order).to(torch.uint16)
    columns = torch.nn.functional.pad(metric.columns, (0, len(order) - len(metric.columns)), value=1.0)
    return {**parts, "s8": scale, "c8": columns, "order": order, "place": place.to(narrow)}


def rounded_table(context: SiteContext, fmt: SiteFormat) -> tuple[TableMetric, dict[int, tuple[torch.Tensor, Trellis]]]:
    """The metric of a vocabulary's table, and by bits its rows and their rounding, columns divided."""
    metric = table_metric(context)
    scaled = metric.scaled(context.weight)
    bits = dealt_as(metric, row_noise(scaled, metric.inputs), fmt.rows)
    return metric, round_table(scaled, metric, bits)


def rounded_blocks(context: SiteContext, fmt: SiteFormat) -> Blocked:
    """A matrix or a vocabulary's table in blocks."""
    if context.roles:
        return round_blocks(context.weight, table_metric(context, columns=False).inputs, None, fmt)
    return round_blocks(context.weight, context.inputs, context.outputs, fmt)


def _block_parts(made: Blocked, fmt: SiteFormat) -> dict[str, torch.Tensor]:
    parts = {"q": pack_blocks(made.values, fmt.bits), "u8": made.grid.code, "s8": made.grid.row}
    if fmt.zero:
        count = 8 // fmt.bits
        wide = torch.nn.functional.pad(made.grid.zero, (0, -made.grid.zero.shape[1] % count))
        parts["z"] = pack_blocks(wide, fmt.bits)
    return parts


def _planes(made: Trellis) -> dict[str, torch.Tensor]:
    return {suffix: torch.from_numpy(plane) for suffix, plane in pack(made.symbols, made.code.bits).items()}


def factored_parts(context: SiteContext, fmt: SiteFormat) -> dict[str, torch.Tensor]:
    """The stored tensors of a factored matrix, by suffix."""
    return pivoted_parts(context, fmt) if fmt.kind in PIVOTED else low_rank_parts(context, fmt)


def pivoted_parts(context: SiteContext, fmt: SiteFormat) -> dict[str, torch.Tensor]:
    """The pivots, the coefficients of the others, and the order: of outputs by rows, of inputs by columns."""
    found = rounded(context, fmt)
    order = torch.cat([found.pivots, found.rest])
    (base, scale), (c, c_scale) = found.base, found.coefficients
    if not found.columns:
        parts = {"a8": _pad(base), "c8": c, "order": torch.argsort(order)}
    else:
        width = context.site.shape[1]
        missing = torch.arange(width, padded(width))
        parts = {
            "b8": base,
            "c8": torch.nn.functional.pad(c, (0, len(missing))),
            "order": torch.cat([order, missing]),
        }
    return {**parts, "s8": scale, "t8": c_scale, "order": parts["order"].to(torch.uint16)}


def low_rank_parts(context: SiteContext, fmt: SiteFormat) -> dict[str, torch.Tensor]:
    """The kept components as they are stored."""
    parts: dict[str, torch.Tensor] = {}
    for bits, (b, a, scale) in rounded_components(context, fmt).items():
        stored = (to_low(b), to_low(a)) if bits == 4 else (b, a)
        parts |= {f"b{bits}": stored[0], f"a{bits}": stored[1], f"s{bits}": scale}
    return parts


def rounded_components(
    context: SiteContext, fmt: SiteFormat
) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Bits → B [m, k], padded A [k, n] and scale [k]; what rounding would cost most has most bits."""
    view, rank = context.at(fmt.rank), fmt.rank
    table, f = view.components, view.factorization
    by_cost = torch.argsort(table.gain[:rank], descending=True, stable=True)
    # Neighbours share an activation scale between A and B: components of like magnitude belong together.
    place = torch.argsort(torch.argsort(table.spread[:rank], descending=True, stable=True))
    found = {}
    for bits, members in zip((16, 8, 4), by_cost.split([fmt.k16, fmt.k8, fmt.k4]), strict=True):
        if len(members):
            chosen = table.order[:rank][members[torch.argsort(place[members])]]
            b, a, scale = round_components(f.b[:, chosen], _pad(f.a[chosen]), bits)
            found[bits] = b.cpu(), a.cpu(), scale.cpu()
    return found


def _pad(matrix: torch.Tensor) -> torch.Tensor:
    """Zero columns up to the storage alignment."""
    return torch.nn.functional.pad(matrix, (0, padded(matrix.shape[1]) - matrix.shape[1]))


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    return tensor.contiguous().numpy()
