"""Write a checkpoint as a bundle: built beside its place, moved there when it is whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from edge_svd.architectures import Architecture
from edge_svd.checkpoint import Checkpoint
from edge_svd.errors import BundleError, InputError
from edge_svd.export import documents
from edge_svd.export.data import write_data
from edge_svd.export.graphs import graphs_of
from edge_svd.files import atomic_write, replace_folder, writing
from edge_svd.runtime.bundle import is_bundle
from edge_svd.runtime.schema import (
    MANIFEST_NAME,
    MEASUREMENTS_NAME,
    MODEL_NAME,
    SCORING_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    Manifest,
    pack_measurements,
)

OURS = frozenset((MANIFEST_NAME, MEASUREMENTS_NAME, documents.GENAI, MODEL_NAME, SCORING_NAME, WEIGHTS_NAME))
"""Names that a companion may not have."""


def export_bundle(
    checkpoint_dir: Path,
    out: Path,
    *,
    context: int | None = None,
    force: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Export a checkpoint folder to the bundle `out` and return its path.

    Work happens in `OUT.partial/bundle`, which a later call starts afresh; `out` appears in one rename. `context` is
    the longest context in tokens (default: 2,048 or the model's). Raises InputError for a damaged checkpoint or an
    `out` that may not be replaced, Failure if the disk refuses.
    """
    checkpoint_dir, out = Path(checkpoint_dir), Path(out)
    refuse_foreign(out, force)
    checkpoint = Checkpoint.open(checkpoint_dir)
    partial = out.with_name(out.name + ".partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise InputError(f"{partial} is in the way of the partial work; move it away.")
    work = partial / "bundle"
    with writing(work):
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
    try:
        write_bundle(checkpoint, work, context, progress or (lambda step, fraction: None))
        replace_folder(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        _remove_if_empty(partial)
        raise
    _remove_if_empty(partial)
    return out


def refuse_foreign(out: Path, force: bool) -> None:
    """InputError if `out` exists and is not a bundle of ours, or is one and may not be replaced."""
    for folder in out.absolute().parents:
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"{out} cannot be written: {folder} is not a folder.")
            break
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink() or not is_bundle(out):
        raise InputError(f"{out} exists and is not an edge-svd bundle; choose another output folder.")
    if not force:
        raise InputError(f"The bundle {out} exists already; --force replaces it.")


def write_bundle(
    checkpoint: Checkpoint, folder: Path, context: int | None, progress: Callable[[str, float], None]
) -> None:
    """Write all files of a bundle into an empty folder; the manifest comes last: where it stands, all is complete."""
    architecture = checkpoint.architecture
    length = documents.context_length(architecture, context)
    biases = frozenset(name.removesuffix(".bias") for name in checkpoint.names if name.endswith(".bias"))
    files: dict[str, tuple[int, str]] = {}

    def add(name: str, data: bytes) -> None:
        atomic_write(folder / name, data)
        files[name] = (len(data), hashlib.sha256(data).hexdigest())

    if TOKENIZER_NAME not in checkpoint.companions:
        raise InputError(
            f"The checkpoint {checkpoint.path} has no {TOKENIZER_NAME} among its companions; a bundle needs one."
        )
    progress("graphs", 0.0)
    cache = documents.kv_cache(checkpoint.plan)
    graphs = graphs_of(architecture, checkpoint.formats, context=length, biases=biases, cache=cache)
    with writing(folder / WEIGHTS_NAME):
        files[WEIGHTS_NAME] = write_data(
            folder / WEIGHTS_NAME,
            graphs[MODEL_NAME].weights,
            checkpoint.tensor,
            lambda fraction: progress("weights", fraction),
        )
    for name, graph in graphs.items():
        add(name, graph.model)
    progress("companions", 0.0)
    for name, path in checkpoint.companions.items():
        if name in OURS:
            raise InputError(
                f"The checkpoint's companion {name} has the name of a file that a bundle makes itself; remove it."
            )
        with writing(path):
            add(name, documents.companion(name, path.read_bytes(), length))
    if isinstance(architecture, Architecture):
        generation = folder / documents.GENERATION
        pad = documents.pad_token_id(generation.read_bytes() if generation.is_file() else b"", architecture)
        add(documents.GENAI, documents.genai_config(architecture, length, pad))
    atomic_write(folder / MEASUREMENTS_NAME, pack_measurements({}))
    manifest = documents.manifest(architecture, length, checkpoint.source, checkpoint.plan, files)
    try:
        Manifest.from_bytes(manifest)
    except BundleError as error:
        raise InputError(f"The checkpoint {checkpoint.path} makes a bundle that the loader refuses: {error}") from None
    atomic_write(folder / MANIFEST_NAME, manifest)
    progress("companions", 1.0)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # other work lies there
