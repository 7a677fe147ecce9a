"""`front` on a tiny model: the front and the techniques under it, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, edge_svd

from edge_svd.front import points
from edge_svd.front.folder import read_front
from edge_svd.planner.generators import GENERATORS
from edge_svd.runtime.bundle import verify

SIZES = "250kB,190000,150kB,5kB"


def front(tiny_model: Path, text: Path, *arguments: Any, sizes: str = SIZES) -> Outcome:
    calibration = ("--calibration", text, "--calibration-windows", 8, "--calibration-window", 64)
    return edge_svd("front", tiny_model, f"--sizes={sizes}", *calibration, *arguments)


@pytest.fixture(scope="module")
def measured(
    tiny_model: Path, tiny_text_file: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished front of the four sizes; its answer lies beside it."""
    folder = tmp_path_factory.mktemp("front") / "made"
    evaluation = ("--text", tiny_text_file, "--window", 64, "--windows", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SVD_CACHE", str(shared_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        answer = front(tiny_model, tiny_text_file, "-o", folder, *evaluation, "--json").json
    folder.with_name("answer.json").write_text(json.dumps(answer))
    return folder


def test_what_is_printed_is_what_lies_in_the_folder(measured: Path) -> None:
    answer = json.loads(measured.with_name("answer.json").read_text())
    assert answer == read_front(measured) == read_front(measured / "front.json")
    assert {path.name for path in measured.iterdir()} == {"front.json", "index.html", "points", "bundles"}
    page = (measured / "index.html").read_text()
    for row in answer["rows"]:
        assert f'<th scope="row">{row["label"]}</th>' in page
        if row["reachable"]:
            assert f"{row['measured']['kl']:.4f}" in page


def test_rows_are_sorted_measured_and_true(measured: Path) -> None:
    answer = read_front(measured)
    assert [row["label"] for row in answer["rows"]] == ["5kB", "150kB", "190kB", "250kB"]
    refused, *reached = answer["rows"]
    assert not refused["reachable"] and refused["refusal"]["smallest"] > 5000
    assert str(refused["refusal"]["smallest"]) in refused["refusal"]["message"]
    for row in reached:
        bundle = measured / row["bundle"]
        verify(bundle)
        size = sum(file.stat().st_size for file in bundle.iterdir())
        assert size == row["measured"]["file_bytes"] == row["predicted"]["file_bytes"] <= row["target"]["value"]
        assert row["measured"]["kl"] > 0 and row["measured"]["decode_tokens_per_s"] > 0
        assert row["proof"]["positions"] >= 256
        score = edge_svd("eval", bundle, "--text", tiny_text(measured), "--window", 64, "--windows", 3, "--json").json
        assert row["measured"]["perplexity"] == pytest.approx(score["perplexity"], rel=1e-6)
    kls = [row["predicted"]["kl"] for row in reached]
    assert kls == sorted(kls, reverse=True)
    assert answer["dense"]["perplexity"] > 1


def tiny_text(measured: Path) -> Path:
    from tiny_folder import tiny_text

    file = measured.with_name("prose.txt")
    file.write_text(tiny_text())
    return file


def test_no_technique_alone_is_better_at_any_target(measured: Path) -> None:
    answer = read_front(measured)
    assert set(answer["curves"]) == set(answer["inputs"]["candidates"]) <= set(GENERATORS.names)
    compared = 0
    for row in answer["rows"]:
        if not row["reachable"]:
            continue
        for points_of in answer["curves"].values():
            (alone,) = (point for point in points_of if point["target"] == row["target"])
            if alone["kl"] is not None:
                assert alone["file_bytes"] <= row["target"]["value"]
                assert row["predicted"]["kl"] <= alone["kl"] * 1.001 + 1e-6
                compared += 1
    assert compared >= 5


def test_curves_are_what_the_limited_planner_gives(measured: Path, tiny_model: Path, tiny_text_file: Path) -> None:
    alone = front(tiny_model, tiny_text_file, "--no-measure", "--json", "--candidates", "low-rank", sizes="190000").json
    (found,) = (p for p in read_front(measured)["curves"]["low-rank"] if p["target"]["value"] == 190_000)
    assert (found["file_bytes"], found["kl"]) == pytest.approx(
        (alone["rows"][0]["predicted"]["file_bytes"], alone["rows"][0]["predicted"]["kl"]), rel=1e-5
    )
    assert alone["curves"] == {}


def test_finished_points_are_not_computed_again(
    measured: Path, tiny_model: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_front(measured)

    def never(*arguments: Any) -> None:
        raise AssertionError("a finished point was computed again")

    monkeypatch.setattr(points, "carry_out", never)
    monkeypatch.setattr(points, "model_loss", never)
    evaluation = ("--text", tiny_text_file, "--window", 64, "--windows", 3)
    again = front(tiny_model, tiny_text_file, "-o", measured, *evaluation, "--json").json
    assert {**again, "date": ""} == {**before, "date": ""}


def test_an_interrupted_front_goes_on_where_it_stopped(
    tiny_model: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, built = tmp_path / "front", points.carry_out, []

    def fails_at_the_second(*arguments: Any) -> Any:
        built.append(arguments[4].name)
        if built == ["190kB", "250kB"]:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(points, "carry_out", fails_at_the_second)
    stopped = front(tiny_model, tiny_text_file, "-o", folder, sizes="190kB,250kB")
    assert stopped.code == 1
    half = read_front(folder)["rows"]
    assert half[0]["measured"] and not half[1]["measured"] and (folder / "index.html").exists()
    whole = front(tiny_model, tiny_text_file, "-o", folder, "--json", sizes="190kB,250kB").json["rows"]
    assert built == ["190kB", "250kB", "250kB"]
    assert whole[0] == half[0] and whole[1]["measured"]


def test_force_measures_again(
    tiny_model: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, built = points.carry_out, []

    def counted(*arguments: Any) -> Any:
        built.append(arguments[4].name)
        return real(*arguments)

    monkeypatch.setattr(points, "carry_out", counted)
    for force, expected in (((), 1), ((), 1), (("--force",), 2)):
        made = front(
            tiny_model, tiny_text_file, "-o", tmp_path / "front", "--candidates", "int8", *force, sizes="190kB"
        )
        assert made.code == 0 and built == ["190kB"] * expected


def test_a_damaged_record_is_measured_again(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "front"
    alone = ("-o", folder, "--candidates", "int8")
    assert front(tiny_model, tiny_text_file, *alone, sizes="190kB").code == 0
    for number, content in enumerate(("", "[]", '{"measured": 3}')):
        (kept,) = (folder / "points").iterdir()
        kept.write_text(content)
        row = front(tiny_model, tiny_text_file, *alone, "--json", sizes="190kB").json["rows"][0]
        assert row["measured"]["kl"] > 0, number


def test_plans_alone_need_no_folder(tiny_model: Path, tiny_text_file: Path) -> None:
    shown = front(tiny_model, tiny_text_file, "--no-measure")
    assert shown.code == 0 and "150kB" in shown.out and "not reachable" in shown.out
    front(tiny_model, tiny_text_file).refused(2, "-o FOLDER", "--no-measure")


def test_a_front_of_memory(tiny_model: Path, tiny_text_file: Path) -> None:
    calibration = ("--calibration", tiny_text_file, "--calibration-windows", 8, "--calibration-window", 64)
    limits = ("--no-measure", "--context", 64, *calibration)
    smallest = edge_svd("front", tiny_model, "--rams=1MB", *limits).refused(3, "memory")
    least = int(smallest.split("smallest possible is ")[1].split()[0])
    made = edge_svd("front", tiny_model, f"--rams=1MB,{least},1GB", *limits, "--json").json
    refused, *rows = made["rows"]
    assert not refused["reachable"] and [row["label"] for row in rows] == [f"ram-{least}B", "ram-1000MB"]
    for row in rows:
        assert row["predicted"]["peak_rss_bytes"] <= row["target"]["value"]
    assert rows[0]["predicted"]["kl"] >= rows[1]["predicted"]["kl"]
    for arguments in ((), ("--sizes=1MB", "--rams=1MB")):
        edge_svd("front", tiny_model, *arguments, *limits).refused(2, "--sizes", "--rams")


def test_nothing_reachable_is_refused_and_writes_nothing(
    tiny_model: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    front(tiny_model, tiny_text_file, "-o", tmp_path / "out", sizes="5kB,6kB").refused(3, "6.00 kB", "the smallest")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [("", "--sizes is empty"), (" , ", "--sizes is empty"), ("1MB,,2MB", "size"), ("1MB,many", "many"), ("0", "byte")]
    + [(",".join(str(10**6 + i) for i in range(65)), "at most 64")],
)
def test_sizes_that_cannot_be_read(sizes: str, words: str, tiny_model: Path, tiny_text_file: Path) -> None:
    front(tiny_model, tiny_text_file, "--no-measure", sizes=sizes).refused(2, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--candidates", "int3"), "int8"),
        (("--method", "nope"), "io-svd"),
        (("--context", "100000"), "256"),
        (("--text", "absent.txt"), "absent.txt"),
        (("--no-measure", "--text", "absent.txt"), "--no-measure"),
    ],
)
def test_options_are_checked_before_any_work(
    arguments: tuple[str, ...], words: str, tiny_model: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    front(tiny_model, tiny_text_file, "-o", tmp_path / "out", *arguments).refused(2, words)
    assert not (tmp_path / "out").exists()


def test_a_window_beyond_the_context_is_refused(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    long = ("--text", tiny_text_file, "--window", 512)
    front(tiny_model, tiny_text_file, "-o", tmp_path / "out", *long).refused(2, "512", "256")


def test_foreign_folders_are_left_alone(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "front.json").write_text('{"mine": true}')
    (tmp_path / "file").write_text("mine")
    for name in ("diary", "file"):
        front(tiny_model, tiny_text_file, "-o", tmp_path / name, "--no-measure").refused(2, name)
    assert (tmp_path / "diary" / "front.json").read_text() == '{"mine": true}'


def test_another_front_is_replaced_only_by_force(tiny_model: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    folder, planned = tmp_path / "front", ("--no-measure", "--json")
    assert front(tiny_model, tiny_text_file, "-o", folder, *planned, sizes="190kB").code == 0
    other = ("--candidates", "int8")
    front(tiny_model, tiny_text_file, "-o", folder, *planned, *other, sizes="190kB").refused(2, "--force")
    more = front(tiny_model, tiny_text_file, "-o", folder, *planned, sizes="190kB,200kB").json
    assert len(more["rows"]) == 2
    forced = front(tiny_model, tiny_text_file, "-o", folder, *planned, *other, "--force", sizes="190kB").json
    assert forced == read_front(folder) and forced["inputs"]["candidates"] == ["int8"]
