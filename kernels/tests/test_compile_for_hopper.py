"""Every Triton kernel compiles for a Hopper in bfloat16 at the shapes of real models, and keeps its budget of registers
and shared memory. Needs no GPU."""

import dataclasses
import re

import pytest

pytest.importorskip("triton")

from kernel_testkit.hopper import SHARED_BYTES, Budget
from kernel_testkit.variants import MODELS, OTHERS, variants

# Every variant of a product with few tokens is compiled every night, and here the one with the fewest.
EVERY_TIME = variants(MODELS, [16])
OFTEN = {variant.key for variant in EVERY_TIME}
NIGHTLY = [variant for variant in variants((*MODELS, *OTHERS), [16, 32, 64]) if variant.key not in OFTEN]
HEADER = f"{'kernel':<26}{'registers':>10}{'spilled':>9}{'shared KB':>11}  models"


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Prints what the kernels need, when all have been compiled."""
    lines = []
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(["", HEADER, *lines]))


def named(variant, name):
    """The first variant of a kernel."""
    return next(found for found in variant if found.name == name)


def check(variant, table):
    compiled = variant.compile()
    shared, models = compiled.shared_bytes / 1024, ", ".join(variant.models)
    table.append(f"{variant.name:<26}{compiled.registers:>10}{compiled.spilled_bytes:>9}{shared:>11.1f}  {models}")
    variant.budget.check(variant.name, compiled)
    for instruction in variant.instructions:
        assert instruction in compiled.asm["ptx"], f"{variant.name} has no {instruction}"
    return compiled


def test_there_are_not_too_many_variants_to_compile_every_time():
    assert 30 <= len(EVERY_TIME) <= 60
    assert {name for variant in EVERY_TIME for name in variant.models} == {model.name for model in MODELS}


@pytest.mark.parametrize("variant", EVERY_TIME, ids=lambda variant: variant.name)
def test_a_kernel_of_a_real_model_keeps_its_budget(variant, table):
    check(variant, table)


@pytest.mark.slow
@pytest.mark.parametrize("variant", NIGHTLY, ids=lambda variant: variant.name)
def test_the_other_variants_keep_theirs(variant, table):
    check(variant, table)


def test_tiles_of_decode_attention_are_on_their_way_while_those_before_are_used():
    compiled = named(EVERY_TIME, "decode_kernel").compile()
    assert max(map(int, re.findall(r"async_wait .*num = (\d+)", compiled.asm["ttgir"]))) >= 2


@pytest.mark.parametrize(
    ("name", "constants", "options", "need"),
    [
        # A row that is far too large for the registers of one warp.
        ("rms_norm_kernel", {"channels": 32768, "block": 32768, "adds": True}, {"num_warps": 1}, "spilled_bytes"),
        # Tiles that are fetched too far ahead.
        ("prompt_kernel", {}, {"num_stages": 9}, "shared_bytes"),
        # Half the warps for the same tile.
        ("silu_mul_kernel", {"block": 8192}, {"num_warps": 1}, "registers"),
    ],
)
def test_a_bad_configuration_is_over_budget(name, constants, options, need):
    good = named(EVERY_TIME, name)
    bad = dataclasses.replace(good, constants=good.constants | constants, options=good.options | options)
    with pytest.raises(AssertionError, match=rf"{name} needs \d+ {need}, its budget is"):
        dataclasses.replace(good.budget, **_unlimited(need)).check(bad.name, bad.compile())


def _unlimited(need):
    """No limit for all but one need, so that it is the one that is seen."""
    limits = {"registers": 255, "shared_bytes": 1 << 30, "spilled_bytes": 1 << 30}
    return {name: limit for name, limit in limits.items() if name != need}


def test_a_budget_is_what_the_device_has():
    assert all(variant.budget.shared_bytes <= SHARED_BYTES for variant in (*EVERY_TIME, *NIGHTLY))
    assert Budget(255).spilled_bytes == 0
