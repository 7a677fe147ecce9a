"""A speed for prompts as a target: what is predicted from a profile, and what the planner gives for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_svd.errors import BudgetError, InputError
from edge_svd.formats import WHOLE_PASS
from edge_svd.models import open_model
from edge_svd.planner.plan import Plan
from edge_svd.planner.targets import Targets
from edge_svd.rotation import rotated
from edge_svd.runtime.kernel_support import whole_pass_works
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

BOARD = """summary = "A board in a test"
basis = "measured"
sources = ["made up"]

[device]
memory_bytes = 1000000000
free_bytes = 900000000
bandwidth_bytes_per_s = 1e9
cores = 1
instruction_sets = [SETS]
usable_share = 1.0

[memory]
process_bytes = 1000
session_bytes = 1000
tokenizer_ratio = 1.0
product_bytes = 10
block_bytes = 12.0

[speed]
threads = 1
launch_s = 1e-6
layer_s = 1e-5
cache_byte_s = 1e-10
prompt_layer_s = 1e-6

[[speed.kernels]]
bits = 8
block = 16
weight_s = 1e-9
prompt_s = 4e-10

[[speed.kernels]]
bits = 8
block = -1
weight_s = 1e-9
prompt_s = 1e-10
"""

Make = Callable[..., Plan]
INNER = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 160 * 64 * 3) + 64 * 64
"""Weights of the tiny model that every token of a prompt passes, the rotation's among them."""


@pytest.fixture(scope="module")
def make(tiny_model: Path, tiny_text_file: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SVD_CACHE", str(shared_cache))
        opened = rotated(open_model(str(tiny_model)))
        statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=64))

        def plan(speed: float | None, board: str = BOARD, sets: str = '"asimd"') -> Plan:
            device = folder / "board.toml"
            device.write_text(board.replace("SETS", sets))
            planning = Planning(candidates="int8", device=str(device), kv_cache="float32")
            prices = run_survey(opened, statistics, planning)
            return run_plan(opened, statistics, prices, planning, Targets(10**9, prefill_tokens_per_s=speed))

        return plan


WITH_VNNI = pytest.mark.skipif(not whole_pass_works(), reason="without VNNI such plans are refused")


def whole(plan: Plan) -> set[str]:
    return {name for name, fmt in plan.formats.items() if fmt.block == WHOLE_PASS}


def test_speed_is_what_the_profile_says_of_every_weight_but_the_vocabulary(make: Make) -> None:
    plan = make(None, sets='"avx2"')
    assert not whole(plan)
    assert plan.prefill_tokens_per_s == pytest.approx(1 / (INNER * 4e-10 + 2 * 1e-6))


@WITH_VNNI
def test_prompts_are_bought_with_as_little_loss_as_possible(make: Make) -> None:
    slow, fast = make(1000), make(1 / (INNER * 1e-10 + 2 * 1e-6) * 0.999)
    between = make(1 / (INNER * 2e-10 + 2 * 1e-6))
    assert len(whole(slow)) < len(whole(between)) < len(whole(fast)) == 15
    for plan in (slow, between, fast):
        assert plan.prefill_tokens_per_s >= plan.targets.prefill_tokens_per_s
        assert Plan.from_json(plan.to_json(), "the plan").to_json() == plan.to_json()
    assert slow.kl < between.kl < fast.kl


@WITH_VNNI
def test_vocabulary_tables_never_share_a_scale(make: Make) -> None:
    assert "model.embed_tokens" not in whole(make(1 / (INNER * 1e-10 + 2 * 1e-6) * 0.999))


@WITH_VNNI
def test_what_is_too_fast_names_the_fastest(make: Make) -> None:
    fastest = 1 / (INNER * 1e-10 + 2 * 1e-6)
    with pytest.raises(BudgetError, match=f"the fastest possible are {int(fastest)} tokens/s") as refused:
        make(2 * fastest)
    assert refused.value.smallest == int(fastest)


def test_processors_whose_int8_products_overflow_get_none(make: Make) -> None:
    with pytest.raises(BudgetError, match="the fastest possible are"):
        make(1 / (INNER * 2e-10 + 2 * 1e-6), sets='"avx2"')


@WITH_VNNI
def test_processors_with_vnni_get_some(make: Make) -> None:
    assert whole(make(1 / (INNER * 2e-10 + 2 * 1e-6), sets='"avx2", "avx_vnni"'))


@pytest.mark.parametrize("gone", ["prompt_layer_s = 1e-6\n", "prompt_s = 1e-10\n", "prompt_s = 4e-10\n"])
def test_profiles_that_say_nothing_of_prompts_are_refused(make: Make, gone: str) -> None:
    assert make(None, BOARD.replace(gone, "")).prefill_tokens_per_s is None
    with pytest.raises(InputError, match="does not say how long prompts take"):
        make(1000, BOARD.replace(gone, ""))
