"""The Triton kernels of paged attention against the reference, in a pool that is NaN wherever no row has a key."""

import dataclasses
import math

import pytest
import torch
from kernel_testkit.attention_case import ANY_MIX, ANY_MIX_OF_ONE_KIND, DECODE, PADDED, PROMPTS, Case
from kernel_testkit.batches import PoolShape, Rows
from kernel_testkit.tolerance import check
from kernel_testkit.triton_device import BFLOAT16, DEVICE, GPU_TESTS

from penstock_kernels.attention import paged_attention, prepare

pytestmark = GPU_TESTS

STEPS = pytest.mark.parametrize(
    "rows",
    [DECODE, PROMPTS, PADDED, ANY_MIX, ANY_MIX_OF_ONE_KIND],
    ids=["decode", "prompts", "padded", "any-mix", "one-kind"],
)
LONG = Rows([(513, 1), (4500, 1), (20, 1), (600, 150)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
# KV heads, head size, tokens per block; query heads; dtypes that the interpreter is to try.
SHAPES = [
    ((1, 40, 16), 3, torch.float32),
    ((1, 64, 8), 1, torch.float16),
    ((2, 34, 1), 6, torch.float32),
    ((2, 128, 32), 8, torch.float16),
    ((1, 16, 64), 37, torch.float32),
]
GPU_SHAPES = [
    ((8, 128, 16), 32, torch.bfloat16),
    ((2, 256, 16), 6, torch.bfloat16),
    ((2, 40, 16), 6, torch.bfloat16),
    ((1, 32, 16), 71, torch.bfloat16),
    ((2, 128, 16), 14, torch.float32),
]


def case(rows, *shape, num_heads=6, dtype=torch.float32, seed=0):
    return Case(rows, PoolShape(*shape), num_heads, dtype, seed, DEVICE)


@STEPS
@pytest.mark.parametrize(
    ("shape", "num_heads", "dtype"),
    [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in GPU_SHAPES)],
    ids=str,
)
def test_equals_the_reference(rows, shape, num_heads, dtype):
    step = case(rows, *shape, num_heads=num_heads, dtype=dtype)
    check("attention", step.run(), step.reference())


@pytest.mark.parametrize("rows", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (16, 5.0), (50, 0.0)])
def test_window_and_softcap(rows, window, softcap):
    step = case(rows, 1, 16, num_heads=3, seed=1)
    check("attention", step.run(window, softcap), step.reference(window, softcap))


@pytest.mark.parametrize(
    ("window", "dtype"),
    [(0, torch.float16), (400, torch.float32), pytest.param(0, torch.bfloat16, marks=pytest.mark.gpu)],
)
def test_long_rows_are_cut(window, dtype):
    step = case(LONG, 1, 16, num_heads=2, dtype=dtype, seed=2)
    check("attention", step.run(window), step.reference(window))


def test_padded_rows_and_tokens_are_zero():
    out = case(PADDED).run()
    padded = [1, 3, *range(11, out.shape[0])]
    assert (out[padded] == 0).all()


def test_a_step_without_any_key_is_zero():
    assert (case(Rows([(0, 1), (0, 1)], padded_tokens=3)).run() == 0).all()


@pytest.mark.parametrize("rows", [DECODE, PROMPTS], ids=["decode", "prompts"])
@DTYPES
def test_a_row_has_the_same_bits_alone_and_in_a_batch(rows, dtype):
    step = case(rows, 1, 64, num_heads=3, dtype=dtype, seed=3)
    out = step.run()
    for row, (seq_len, _) in enumerate(rows.lens):
        if seq_len:
            assert torch.equal(out[step.tokens(row)], step.alone(row)), f"row {row}"


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_cut_row_has_the_bits_of_a_whole_one(dtype):
    rows = Rows([(300 + 7 * row, 1) for row in range(12)])
    step = case(rows, 1, 16, num_heads=3, dtype=dtype, seed=4)
    out = step.run(window=280)
    for row in (0, 11):
        assert torch.equal(out[step.tokens(row)], step.alone(row, window=280)), f"row {row}"


@pytest.mark.parametrize("victim", [0, 3])
def test_a_nan_row_changes_no_other(victim):
    step = case(PROMPTS, 1, 16, num_heads=3, seed=5)
    expected = step.run()
    step.keys[step.table[victim, 0].item(), 0] = torch.nan
    step.values[step.table[victim, 0].item(), 0] = torch.nan
    out = step.run()
    mine = step.tokens(victim)
    assert torch.isnan(out[mine]).all()
    assert torch.equal(out[: mine.start], expected[: mine.start])
    assert torch.equal(out[mine.stop :], expected[mine.stop :])


def test_a_dead_row_reads_block_0_and_changes_no_other():
    step = case(DECODE, seed=6)
    expected = step.run()
    step.table[2] = 0  # its length is what it was
    out = step.run()
    others = [row for row in range(len(DECODE.lens)) if row != 2]
    assert torch.equal(out[others], expected[others])


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float16, 2**-11), pytest.param(torch.bfloat16, 2**-8, marks=pytest.mark.gpu)],
    ids=str,
)
def test_powers_of_two_are_exact(dtype, rounding):
    """Every weight is a power of two and every value a small whole number, so the only error is the result's rounding:
    a wrong operand of one product shows among hundreds of right ones."""
    step = case(Rows([(700, 1), (190, 1), (300, 200)]), 1, 64, num_heads=4, dtype=dtype, seed=7)
    step.scale = math.log(2)
    step.query.zero_()[..., 0] = 1.0
    step.keys[..., 1:] = torch.where(step.keys[..., 1:].isnan(), torch.nan, 0.0)
    step.keys[..., 0] = (step.keys[..., 0] * 2).round().clamp(-4, 4)
    step.values.copy_((step.values * 4).round())
    out, expected = step.run().double().cpu(), step.reference()
    smallest = torch.finfo(torch.float16).smallest_normal * 2**-10  # one step of those below it
    assert ((out - expected).abs() <= rounding * 1.001 * expected.abs() + smallest).all()


def test_layers_share_what_a_step_prepares():
    step = case(Rows([(300, 1), (40, 5)]), 1, 16, num_heads=2, seed=8)
    prepared = prepare(step.batch, 16, step.dtype)
    first, second = (paged_attention(step.query, step.keys, step.values, prepared, step.scale) for _ in range(2))
    check("attention", first, step.reference())
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_captured_step_follows_the_lengths(dtype):
    lens = [513, 4500, 20, 1, 64, 129, 300, 0]
    step, other = (
        case(Rows([(keys, 1) for keys in order]), 2, 64, num_heads=8, dtype=dtype, seed=9)
        for order in (lens, lens[::-1])
    )
    step.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.run()
    step.table.copy_(other.table)
    step.batch.seq_lens.copy_(other.batch.seq_lens)
    for mine, theirs in zip((step.query, step.keys, step.values), (other.query, other.keys, other.values), strict=True):
        mine.copy_(theirs)
    graph.replay()
    first = out.clone()
    check("attention", first, other.reference())
    graph.replay()
    assert torch.equal(out, first)


@pytest.mark.gpu
def test_a_captured_step_follows_the_mix_of_rows():
    """As many tokens, of other rows."""
    mixes = [
        [(500, 1), (300, 200), (90, 40), (0, 0), (0, 0), (0, 0)],
        [(1, 1), (2, 1), (1500, 1), (40, 1), (64, 64), (130, 90)],
        [(700, 230), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)],
    ]
    steps = [
        case(Rows(lens, padded_tokens=256 - sum(count for _, count in lens), max_prompt_rows=4), 2, 64, num_heads=8)
        for lens in mixes
    ]
    width = max(step.table.shape[1] for step in steps)
    step = steps[0]
    table = torch.zeros((6, width), dtype=torch.int32, device=DEVICE)
    blocks = max(step.keys.shape[0] for step in steps)
    step.keys, step.values = (torch.zeros((blocks, *step.keys.shape[1:]), device=DEVICE) for _ in range(2))
    step.batch = dataclasses.replace(step.batch, block_table=table)
    step.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.run()
    for other in (steps[1], steps[2], case(steps[0].rows, 2, 64, num_heads=8)):
        table.zero_()[:, : other.table.shape[1]] = other.table
        for name in ("seq_lens", "query_starts", "decode_rows"):
            getattr(step.batch, name).copy_(getattr(other.batch, name))
        for mine, theirs in ((step.query, other.query), (step.keys, other.keys), (step.values, other.values)):
            mine[: theirs.shape[0]] = theirs
        graph.replay()
        check("attention", out, other.reference())
