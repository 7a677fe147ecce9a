from __future__ import annotations

from pathlib import Path

import pytest

from edge_svd.errors import InputError
from edge_svd.recipe import Recipe, list_recipes, load_recipe, parse_recipe

MINIMAL = b'summary = "s"\nmodel = "m"\nsize = "64MB"\n'


def test_the_packaged_recipes_are_valid() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
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
    device = "pi5"
    calibration = "self:0.5"
    calibration_windows = 4
    calibration_window = 32
    method = "svd"
    allocation = "uniform"
    candidates = "int8"
    seed = 0
    """
    recipe = parse_recipe(text.encode(), "r", "r.toml")
    assert recipe == Recipe(
        "r", "s", "folder", 1000, 2**20, 512, 64, 2.5, "pi5", ("self:0.5",), 4, 32, "svd", "uniform", "int8", 0
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
