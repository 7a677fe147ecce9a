"""Scales that are computed for onnxruntime, against those that it folds."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from export_session import empty_cache, open_session, step
from export_tiny import INT8, INT16, make_checkpoint, tiny_model

from edge_svd.architectures import Architecture
from edge_svd.export import export_bundle
from edge_svd.formats import SiteFormat
from edge_svd.runtime import scales as module
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.graph_cut import Parts
from edge_svd.runtime.onnx_session import open_onnx
from edge_svd.runtime.scales import given_scales

TOKENS = np.random.default_rng(0).integers(3, 96, (1, 12))
FORMATS = {
    "int8": INT8,
    "int16": INT16,
    "4 bits": SiteFormat("blocks", bits=4, block=32, zero=True),
    "8 bits": SiteFormat("blocks", bits=8, block=32),
    "trellis": SiteFormat("trellis", bits=3),
    "low-rank": SiteFormat("low-rank", 16, 16),
    "rows": SiteFormat("row-pivoted", 16),
    "columns": SiteFormat("column-pivoted", 16),
}
NAME = "model.onnx"


def made(folder: Path, fmt: SiteFormat) -> tuple[Path, Architecture]:
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    a = make_checkpoint(
        folder / "c", model, lambda site: INT8 if site.type in ("embedding", "lm_head") and fmt.factored else fmt
    )
    return export_bundle(folder / "c", folder / "b"), a


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_logits_stay_the_same_to_the_last_bit(fmt: SiteFormat, tmp_path: Path) -> None:
    bundle, a = made(tmp_path, fmt)
    expected, _ = step(open_session(bundle, NAME), a, TOKENS, empty_cache(a))
    session = open_onnx(open_bundle(bundle), NAME, threads=1, spinning=False, arena=False)
    _, scales = session.edge_svd_handed
    assert scales.names
    found, _ = step(session, a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(found, expected)
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert set(scales.dropped) == set(scales.names)
        assert not any(scales.array(name).any() for name in scales.names)


def test_every_product_gets_its_scales(tmp_path: Path) -> None:
    """But one whose scales the table of the embedding reads too."""
    bundle, _ = made(tmp_path, FORMATS["4 bits"])
    graph = (bundle / NAME).read_bytes()
    given, makers = given_scales(graph, np.frombuffer((bundle / "model.onnx.data").read_bytes(), np.uint8))
    readers = Parts(graph).readers().values()
    read = [places for places in readers if any(node.kind == "MatMulNBits" and at == 2 for node, at in places)]
    alone = [places for places in read if all(node.kind == "MatMulNBits" for node, _ in places)]
    assert len(makers) == len(alone) > 7 and len(read) - len(alone) <= 1
    assert all(make().dtype == np.float32 for make in makers.values())
    assert all(given.count(name.encode()) for name in makers)


def test_scales_that_kernels_read_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the logits change once they are gone, they are computed again."""
    from edge_svd.runtime.handed_over import HandedOver

    bundle, a = made(tmp_path, INT8)
    expected, _ = step(open_session(bundle, NAME), a, TOKENS, empty_cache(a))
    seen = iter(range(1000))
    monkeypatch.setattr(
        "edge_svd.runtime.handed_over._outputs", lambda session: np.array([next(seen)])
    )  # every answer is another one
    session = open_onnx(open_bundle(bundle), NAME, threads=1, spinning=False, arena=False)
    _, scales = session.edge_svd_handed
    assert isinstance(scales, HandedOver) and not scales.dropped
    assert all(scales.array(name).any() for name in scales.names)
    found, _ = step(session, a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(found, expected)


def test_what_is_not_known_is_left_to_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, a = made(tmp_path, INT8)
    expected, _ = step(open_session(bundle, NAME), a, TOKENS, empty_cache(a))
    monkeypatch.setattr(module, "OPERATORS", {})
    session = open_onnx(open_bundle(bundle), NAME, threads=1, spinning=False, arena=False)
    assert session.edge_svd_handed == ()
    found, _ = step(session, a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(found, expected)
    assert given_scales(b"", np.zeros(0, np.uint8)) == (b"", {})
