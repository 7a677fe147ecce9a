from __future__ import annotations

import json
import os
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
from command_line import edge_svd
from hypothesis import given
from hypothesis import strategies as st

from edge_svd import recipe
from edge_svd.commands import fitting
from edge_svd.errors import InputError
from edge_svd.fit_options import resolve
from edge_svd.recipe import Recipe, list_recipes, load_recipe, parse_recipe
from edge_svd.recipe_check import check_recipe
from edge_svd.recipe_lines import key_lines
from edge_svd.report.listing import recipe_list, recipe_text

MINIMAL = b'summary = "s"\nmodel = "m"\nsize = "64MB"\n'


def test_the_packaged_recipes_are_valid() -> None:
    recipes = {shipped.name: shipped for shipped in list_recipes()}
    demo = recipes["smollm2-demo-110mb"]
    assert demo.model == "smollm2-demo" and demo.size == 110_000_000 and demo.calibration == ("self",)
    assert demo == load_recipe("smollm2-demo-110mb")


def test_every_option_is_read() -> None:
    text = """
    summary = "s"
    model = "folder"
    size = 1000
    ram = "1MiB"
    context = 512
    prompt_chunk = 64
    min_decode_tps = 2.5
    min_prefill_tps = 50
    rotate = true
    device = "pi5"
    calibration = "self:0.5"
    calibration_windows = 4
    calibration_window = 32
    method = "svd"
    allocation = "uniform"
    candidates = "int8"
    seed = 0
    """
    assert parse_recipe(text.encode(), "r", "r.toml") == Recipe(
        "r",
        "s",
        "folder",
        1000,
        2**20,
        512,
        64,
        2.5,
        50,
        "pi5",
        ("self:0.5",),
        4,
        32,
        "svd",
        "uniform",
        "int8",
        0,
        rotate=True,
    )


def test_options_are_what_the_file_sets() -> None:
    assert parse_recipe(MINIMAL, "r", "r.toml").options() == {"size": 64_000_000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + b'sise = "1MB"', "'sise'"),
        (MINIMAL + b"context = '512'", "'context'.*whole number"),
        (MINIMAL + b"context = true", "'context'.*whole number"),
        (MINIMAL + b"context = 0", "'context'.*positive"),
        (MINIMAL + b"seed = -1", "'seed'.*positive"),
        (MINIMAL + b"min_decode_tps = nan", "'min_decode_tps'.*positive"),
        (MINIMAL + b"method = 3", "'method'.*string"),
        (MINIMAL + b"calibration = []", "'calibration'"),
        (MINIMAL + b"calibration = [1]", "'calibration'"),
        (MINIMAL.replace(b"64MB", b"many"), "'size'.*many"),
        (MINIMAL.replace(b"model", b"# model"), "lacks the key 'model'"),
        (MINIMAL.replace(b"size", b"# size"), "no budget"),
        (MINIMAL + b"size = 3", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_faults_name_the_file_and_the_key(text: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_recipe(text, "r", "r.toml")
    assert "r.toml" in str(caught.value)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="'nonsense'.*smollm2-demo-110mb"):
        load_recipe("nonsense")


def test_a_path_works_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(MINIMAL)
    assert load_recipe(str(tmp_path / "mine.toml")).name == "mine"
    with pytest.raises(InputError, match="absent.toml"):
        load_recipe(str(tmp_path / "absent.toml"))


def test_every_key_of_a_recipe_can_be_written() -> None:
    own = {field.name for field in fields(Recipe)}
    assert set(recipe._KINDS) == own - {"name", "file", "lines"}


def test_every_shipped_recipe_asks_for_what_fit_has() -> None:
    """The options that the command line hands to `resolve`, and names that exist."""
    given = signature(fitting.fit).parameters
    for shipped in list_recipes():
        check_recipe(shipped, given)
    assert len(list_recipes()) >= 6
    assert len({shipped.model for shipped in list_recipes()}) >= 5


def test_recipes_are_listed_in_one_line_each() -> None:
    lines = recipe_text(recipe_list()).splitlines()
    assert [line.split()[0] for line in lines] == [shipped.name for shipped in list_recipes()]
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("kind", ["folder", "pipe", "unnameable"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / ("x" * 300 + ".toml")
    with pytest.raises(InputError, match="Cannot read the recipe"):
        load_recipe(str(path))


def test_a_recipe_is_fitted(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path) -> None:
    """By the command line: what the recipe says, and where it is wrong one sentence that points there."""
    recipe = tmp_path / "tiny.toml"
    lines = ['summary = "tiny"', f"model = {json.dumps(str(tiny_model))}", 'size = "190kB"', 'candidates = "int8,fp16"']
    lines += [f"calibration = {json.dumps(str(tiny_text_file))}", "calibration_windows = 8", "calibration_window = 64"]
    recipe.write_text("\n".join(lines))
    made = edge_svd("fit", "--recipe", recipe, "-o", tmp_path / "out", "--json").json
    assert made["measured"]["file_bytes"] <= 190_000
    assert made["plan"]["candidates"] == ["int8", "int16"]
    assert {site["kind"] for site in made["plan"]["sites"].values()} <= {"int8", "int16"}
    recipe.write_text("\n".join([*lines, 'metod = "svd"']))
    refused = edge_svd("fit", "--recipe", recipe, "-o", tmp_path / "more").refused(2, "did you mean 'method'?")
    assert f"{recipe}:8: " in refused


POINTED = b"""# a comment
summary = "s"
model = "m"

calibration = [
  "self",
  "hub:some/set:0.5",
]
size = "64MB"
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('sise = "1MB"', "r.toml:10: unknown key 'sise' (did you mean 'size'?); rename it or remove that line."),
        ("calibration_window_tokens = 3", "r.toml:10: unknown key 'calibration_window_tokens' (did you mean 'calibra"),
        ("qqq = 3", "r.toml:10: unknown key 'qqq'; known keys: summary, model, size"),
        (
            "context = '512'",
            "r.toml:10: the key 'context' must be a whole number, not '512'; for instance context = 2048.",
        ),
        ("seed = [\n 1,\n 2]", "r.toml:10: the key 'seed' must be a whole number, not [1, 2]; for instance seed = 0."),
        ("\n\ncontext = 1979-05-27", "r.toml:12: the key 'context' must be a whole number, not datetime.date"),
        ("[context]\nsize = 3", "r.toml:10: the key 'context' must be a whole number, not {'size': 3}"),
        ("context = 2147483648", "r.toml:10: the key 'context' must be positive and at most 2147483647"),
        ('method = "a\\nb"', "r.toml:10: the key 'method' must be one line of text, not 'a\\nb'"),
        ("method = ", "r.toml:10: not valid TOML: Invalid value; correct that line."),
        ('method = "x', "not valid TOML"),
        ("size = 3", "r.toml:10: not valid TOML: Cannot overwrite a value; correct that line."),
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("seed = " + "[" * 5000, "not valid TOML"),
        ("# " + "x" * 70000, "larger than 65536 bytes"),
    ],
)
def test_messages_point_at_the_line_and_say_what_to_do(more: str, message: str) -> None:
    for content in (POINTED + more.encode(), (POINTED + more.encode()).replace(b"\n", b"\r\n")):
        with pytest.raises(InputError) as caught:
            parse_recipe(content, "r", "r.toml")
        assert message in str(caught.value) or "larger" in message
        assert "\n" not in str(caught.value)


def test_lines_are_those_of_the_top_level() -> None:
    text = 'a = """\nb = 1\n"""\n[t]\na = 1\nc = 2\n[[u]]\nd = 3\n'
    assert key_lines(text) == {"a": 1, "t": 4, "u": 7}
    assert key_lines("a.b = 1\na.c = 2\n'd e' = [\n1,\n\n2]\nf = {x = 1}") == {"a": 1, "d e": 3, "f": 7}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('method = "nope"', "mine.toml:4: Unknown decomposition method 'nope'"),
        ('candidates = "int8,int3"', "mine.toml:4: Unknown candidate kind 'int3'"),
        ('calibration = ["self:0"]', "mine.toml:4: The calibration source 'self:0'"),
        ('device = "pi5"', "mine.toml:4: `fit` has no option 'device' yet"),
    ],
)
def test_names_that_do_not_exist_are_pointed_at(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(MINIMAL + line.encode())
    given = dict.fromkeys(("model", "size", "method", "candidates", "calibration"))
    with pytest.raises(InputError) as caught:
        resolve(given, str(file), tmp_path / "out")
    assert message in str(caught.value)


def test_the_command_line_overrides_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(MINIMAL + b'method = "svd"\nseed = 3\n')
    given = {"size": "70MB", "method": None, "seed": 5}
    options = resolve(given, str(tmp_path / "mine.toml"), tmp_path / "out")
    assert (options.model, options.targets.file_bytes) == ("m", 70_000_000)
    assert (options.planning.method, options.planning.seed, options.calibration.seed) == ("svd", 5, 5)


def refused_or_read(content: bytes) -> Recipe | None:
    """A recipe, or one sentence about the file; anything else is a traceback and fails the test."""
    try:
        return parse_recipe(content, "r", "r.toml")
    except InputError as error:
        assert "r.toml" in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return None


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    refused_or_read(content)
    refused_or_read(MINIMAL + content)


@given(st.text(max_size=200))
def test_any_text_behind_a_recipe_is_read_or_refused(text: str) -> None:
    refused_or_read(MINIMAL + text.encode("utf-8", "surrogatepass"))


scalars = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.integers().map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(["true", "false", "nan", "inf", "-inf", "1e400", "1979-05-27", "07:32:00", "0x1f", '""', "'64MB'"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]")
        | st.lists(inner, max_size=2).map(lambda found: f"{{{', '.join(f'k{i} = {v}' for i, v in enumerate(found))}}}")
    ),
    max_leaves=6,
)
keys = st.sampled_from([*recipe._KINDS, "sizes", "Size", "modle", "t.u"]) | st.text(
    "abcdefgh_-", min_size=1, max_size=12
)


@given(st.dictionaries(keys, values, max_size=8), st.booleans())
def test_any_table_is_read_or_refused(table: dict[str, str], whole: bool) -> None:
    lines = [f"{key} = {value}" for key, value in table.items()]
    if whole:
        lines += [line for line in MINIMAL.decode().splitlines() if line.split(" = ")[0] not in table]
    found = refused_or_read("\n".join(lines).encode())
    if found is not None:
        assert found.size is None or found.size > 0
        assert set(found.options()) <= set(recipe._KINDS)
        assert all(lines[number - 1].startswith(key) for key, number in found.lines.items())
