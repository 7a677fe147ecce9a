"""Packed matrices unpacked by our runtime, against onnxruntime folding the functions of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from export_session import empty_cache, open_session, step
from export_tiny import make_checkpoint, tiny_model

from edge_svd.architectures import Architecture, sites_of
from edge_svd.export import export_bundle
from edge_svd.formats import SiteFormat
from edge_svd.runtime.errors import BundleError
from edge_svd.runtime.unpack import unpacked

TOKENS = np.random.default_rng(0).integers(3, 96, (1, 12))
FILES = ("model_scoring.onnx", "model.onnx.data")


@pytest.fixture(scope="module", params=(True, False), ids=("tied", "untied"))
def coded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Architecture]:
    folder = tmp_path_factory.mktemp("coded")
    model = tiny_model("llama", tie_word_embeddings=request.param, hidden_size=40)
    table = SiteFormat("table", rows=((6, 10), (3, 50), (1, 36)))
    widths = iter([1, 2, 3, 4, 5, 6] * 10)

    def choose(site: object) -> SiteFormat:
        kind = site.type  # type: ignore[attr-defined]
        return table if kind in ("embedding", "lm_head") else SiteFormat("trellis", bits=next(widths))

    architecture = make_checkpoint(folder / "checkpoint", model, choose)
    return export_bundle(folder / "checkpoint", folder / "bundle"), architecture


def packed_rows(architecture: Architecture) -> int:
    """Rows of all matrices, each of which is packed; those of one product are unpacked below each other."""
    return sum(site.shape[0] for site in sites_of(architecture) if not site.tied_to)


def rows_of(arrays: Iterable[np.ndarray]) -> int:
    return sum(len(array) for array in arrays)


def files(bundle: Path) -> tuple[bytes, np.ndarray]:
    graph, data = ((bundle / name).read_bytes() for name in FILES)
    return graph, np.frombuffer(data, np.uint8)


def test_both_ways_give_the_same_logits(coded: tuple[Path, Architecture]) -> None:
    bundle, a = coded
    folded, _ = step(open_session(bundle), a, TOKENS, empty_cache(a))
    graph, made = unpacked(*files(bundle), FILES[0])
    arrays = {name: make() for name, make in made.items()}
    assert rows_of(arrays.values()) == packed_rows(a) and all(array.dtype == np.uint8 for array in arrays.values())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_external_initializers(
        list(arrays), [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    )
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
    given, _ = step(ort.InferenceSession(graph, options), a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(folded, given)


def test_a_graph_without_packed_matrices_stays_as_it_is(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", tiny_model("llama"))
    graph, data = files(export_bundle(tmp_path / "checkpoint", tmp_path / "bundle"))
    assert unpacked(graph, data, "g") == (graph, {})


def test_rows_are_given_back_once_the_session_is_made(coded: tuple[Path, Architecture]) -> None:
    from edge_svd.runtime.bundle import open_bundle
    from edge_svd.runtime.onnx_session import open_onnx

    bundle, a = coded
    expected, _ = step(open_session(bundle), a, TOKENS, empty_cache(a))
    session = open_onnx(open_bundle(bundle), FILES[0], threads=1, spinning=False, arena=False)
    rows, scales = session.edge_svd_handed
    assert set(scales.dropped) == set(scales.names)
    assert rows_of(map(rows.array, rows.names)) == packed_rows(a) and set(rows.dropped) == set(rows.names)
    assert not any(rows.array(name).any() for name in rows.names)
    given, _ = step(session, a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(expected, given)


def test_rows_are_restored_where_onnxruntime_still_reads_them(coded: tuple[Path, Architecture]) -> None:
    """Handed over as shared initializers, they are not copied: a Gather looks tokens up in our memory."""
    from edge_svd.runtime.handed_over import HandedOver

    bundle, a = coded
    expected, _ = step(open_session(bundle), a, TOKENS, empty_cache(a))
    graph, made = unpacked(*files(bundle), FILES[0])
    rows, options = HandedOver(made), ort.SessionOptions()
    options.log_severity_level = 3
    values = {name: rows.make(name) for name in made}
    for name in made:
        options.add_initializer(name, values[name])
    options.add_external_initializers(list(made), list(values.values()))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
    session = ort.InferenceSession(graph, options)
    rows.give_back(session)
    assert not rows.dropped and all(rows.array(name).any() for name in rows.names)
    given, _ = step(session, a, TOKENS, empty_cache(a))
    np.testing.assert_array_equal(expected, given)


def test_the_runtime_keeps_what_it_hands_over(tmp_path: Path) -> None:
    """onnxruntime must own the memory: nothing here holds it once the session is made."""
    import gc

    from edge_svd.runtime.bundle import open_bundle
    from edge_svd.runtime.onnx_session import open_onnx

    model = tiny_model("llama", tie_word_embeddings=True, vocab_size=4096)
    table = SiteFormat("table", rows=((6, 96), (3, 4000)))
    a = make_checkpoint(tmp_path / "c", model, lambda site: table if site.type == "embedding" else SiteFormat("int8"))
    bundle = export_bundle(tmp_path / "c", tmp_path / "b")
    options: dict[str, bool] = {"spinning": False, "arena": False}
    session = open_onnx(open_bundle(bundle), FILES[0], threads=1, **options)
    expected, _ = step(open_session(bundle), a, TOKENS, empty_cache(a))
    for _ in range(3):
        gc.collect()
        junk = [np.full(4096 * 64, 7, np.uint8) for _ in range(20)]
        found, _ = step(session, a, TOKENS, empty_cache(a))
        np.testing.assert_array_equal(found, expected)
        del junk


@pytest.mark.parametrize("change", [(b"Table6_3_1", b"Table6_2_1"), (b"Unpack3", b"Unpack9"), (b"Unpack2", b"Unpack1")])
def test_calls_that_do_not_fit_are_refused(coded: tuple[Path, Architecture], change: tuple[bytes, bytes]) -> None:
    graph, data = files(coded[0])
    assert change[0] in graph
    with pytest.raises(BundleError, match="does not fit its own tensors"):
        all(make() is not None for make in unpacked(graph.replace(*change), data, "g")[1].values())


def test_rows_out_of_place_are_refused(coded: tuple[Path, Architecture]) -> None:
    graph, data = files(coded[0])
    _, made = unpacked(graph, data, "g")
    places = np.frombuffer(data.tobytes(), "<u2")
    rows = len(next(array for array in (make() for make in made.values()) if len(array) == 96))
    start = next(i for i in range(len(places) - rows) if sorted(places[i : i + rows]) == list(range(rows)))
    damaged = data.copy()
    damaged[2 * start : 2 * start + 2] = damaged[2 * start + 2 : 2 * start + 4]
    with pytest.raises(BundleError, match="does not fit its own tensors"):
        all(make() is not None for make in unpacked(graph, damaged, "g")[1].values())
