"""Device profiles: the shipped ones are sound, and every fault is one sentence with file, line and field."""

from __future__ import annotations

import pytest

from edge_svd.devices import DATA_SHEETS, DEFAULT, MEASURED, list_profiles, load_profile, parse_profile, profile_names
from edge_svd.errors import InputError
from edge_svd.fit_options import targets_of

GOOD = """summary = "A board"
basis = "measured"
sources = ["a ruler"]

[device]
memory_bytes = 1000
free_bytes = 800
bandwidth_bytes_per_s = 1e9
usable_share = 0.5
cores = 4
instruction_sets = ["asimd"]

[memory]
process_bytes = 10
session_bytes = 20
tokenizer_ratio = 2
product_bytes = 3
block_bytes = 12.0

[speed]
threads = 2
launch_s = 1e-6
layer_s = 1e-5
cache_byte_s = 1e-10

[[speed.kernels]]
bits = 8
block = 16
weight_s = 1e-11

[[speed.kernels]]
bits = 8
block = 128
weight_s = 5e-12
"""


def test_a_sound_profile_is_read() -> None:
    profile = parse_profile(GOOD.encode(), "board", "board.toml")
    assert profile.device.usable_bandwidth == 5e8 and profile.memory.tokenizer_ratio == 2.0
    assert profile.speed is not None
    assert profile.speed.weight_seconds(8, 16) == profile.speed.weight_seconds(8, 32) == 1e-11
    assert profile.speed.weight_seconds(8, 64) == 5e-12
    assert profile.speed.weight_seconds(4, 64) == 1e-11


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("free_bytes = 800", "free_bytes = -1", ("device.free_bytes", "line 7", "positive")),
        ("free_bytes = 800", "free_bytes = 2000", ("device.free_bytes", "line 7", "more than memory_bytes")),
        ("free_bytes = 800", "", ("device.free_bytes", "line 5", "missing")),
        ("cores = 4", "cores = 4\ncolour = 3", ("device.colour", "line 11", "unknown field")),
        ("cores = 4", "cores = 4.5", ("device.cores", "line 10", "whole number")),
        ("usable_share = 0.5", "usable_share = 1.5", ("device.usable_share", "line 9", "at most 1")),
        ("block_bytes = 12.0", "block_bytes = nan", ("memory.block_bytes", "line 18", "positive")),
        ("block_bytes = 12.0", 'block_bytes = "12"', ("memory.block_bytes", "line 18", "number")),
        ('basis = "measured"', 'basis = "guess"', ("basis", "line 2", "data sheets")),
        ('basis = "measured"', 'basis = "data sheets"', ("speed", "line 20", "cannot come from data sheets")),
        ('sources = ["a ruler"]', "sources = []", ("sources", "line 3", "list of texts")),
        ("block = 128", "block = 16", ("speed.kernels", "twice")),
        ("weight_s = 5e-12", "", ("speed.kernels.weight_s", "missing")),
        ("[memory]", "[memory", ("not valid TOML",)),
        ('summary = "A board"', "", ("summary", "missing")),
    ],
)
def test_faults_are_pointed_at(old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as refused:
        parse_profile(GOOD.replace(old, new).encode(), "board", "board.toml")
    sentence = str(refused.value)
    assert all(word in sentence for word in ("board.toml", *words)), sentence
    assert "\n" not in sentence


def test_shipped_profiles() -> None:
    profiles = {profile.name: profile for profile in list_profiles()}
    assert set(profiles) == set(profile_names()) and len(profiles) >= 7
    assert profiles[DEFAULT].basis == MEASURED and profiles[DEFAULT].speed is not None
    for profile in profiles.values():
        assert profile.basis in (MEASURED, DATA_SHEETS) and profile.sources
        assert (profile.speed is None) == (profile.basis == DATA_SHEETS)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="this-machine"):
        load_profile("typewriter")
    with pytest.raises(InputError, match=r"nowhere\.toml"):
        load_profile("nowhere.toml")


def test_targets_from_options() -> None:
    free = load_profile("pi-4-2gb").device.free_bytes
    assert targets_of({"device": "pi-4-2gb"}).peak_rss_bytes == free
    both = targets_of({"size": "64MB", "ram": 300_000_000, "min_decode_tps": 5})
    assert (both.file_bytes, both.peak_rss_bytes, both.decode_tokens_per_s) == (64_000_000, 300_000_000, 5)
    assert targets_of({"size": "64MB", "device": "pi-4-2gb"}).peak_rss_bytes is None
    with pytest.raises(InputError, match="contradicts"):
        targets_of({"ram": "4GB", "device": "pi-4-2gb"})
    with pytest.raises(InputError, match="--size"):
        targets_of({"min_decode_tps": 5})
