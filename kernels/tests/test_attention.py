"""Paged attention against the reference, in a pool that is NaN wherever no row has a key."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testkit.attention_case import DECODE, PADDED, PROMPTS, Case
from kernel_testkit.batches import PoolShape, Rows, attention_batch, block_tables
from kernel_testkit.counting import count_operations
from kernel_testkit.tolerance import check

from penstock_kernels.attention import prepare


@pytest.mark.parametrize("rows", [DECODE, PROMPTS, PADDED], ids=["decode", "prompts", "padded"])
@pytest.mark.parametrize(
    ("shape", "num_heads"),
    [(PoolShape(2, 40, 16), 6), (PoolShape(1, 64, 8), 1), (PoolShape(3, 34, 1), 9), (PoolShape(4, 128, 32), 4)],
    ids=str,
)
def test_equals_the_reference(rows, shape, num_heads):
    case = Case(rows, shape, num_heads)
    check("attention", case.run(), case.reference())


@pytest.mark.parametrize("window", [1, 16, 50])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_window_and_softcap(window, softcap):
    for rows in (DECODE, PROMPTS, PADDED):
        case = Case(rows, seed=1)
        check("attention", case.run(window, softcap), case.reference(window, softcap))


@pytest.mark.parametrize("rows", [DECODE, PROMPTS], ids=["decode", "prompts"])
def test_bfloat16(rows):
    case = Case(rows, dtype=torch.bfloat16, seed=2)
    check("attention", case.run(), case.reference())


def test_padded_rows_and_tokens_are_zero():
    case = Case(PADDED)
    out = case.run()
    padded = [1, 3, *range(11, out.shape[0])]
    assert (out[padded] == 0).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [DECODE, PROMPTS, PADDED], ids=["decode", "prompts", "padded"])
@pytest.mark.parametrize(("num_kv_heads", "num_heads"), [(1, 1), (1, 4), (2, 2), (2, 4), (2, 6), (3, 15), (2, 14)])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(num_kv_heads, num_heads, rows, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Case(rows, PoolShape(num_kv_heads), num_heads, seed=3)
        out = case.run()
        for row, (seq_len, query_len) in enumerate(rows.lens):
            start = int(case.batch.query_starts[row])
            if seq_len:
                assert torch.equal(out[start : start + query_len], case.alone(row)), f"row {row}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("victim", range(len(PROMPTS.lens)))
def test_a_nan_row_changes_no_other(victim):
    case = Case(PROMPTS, seed=4)
    expected = case.run()
    case.keys[case.table[victim, 0].item(), 0] = torch.nan
    case.values[case.table[victim, 0].item(), 0] = torch.nan
    out = case.run()
    start, end = case.batch.query_starts[victim : victim + 2].tolist()
    assert torch.isnan(out[start:end]).all()
    assert torch.equal(out[:start], expected[:start])
    assert torch.equal(out[end:], expected[end:])


def test_a_dead_row_reads_block_0_and_changes_no_other():
    case = Case(DECODE, seed=5)
    expected = case.run()
    case.table[2] = 0  # its length on the host is what it was
    out = case.run()
    others = [row for row in range(len(DECODE.lens)) if row != 2]
    assert torch.equal(out[others], expected[others])


def test_operations_do_not_depend_on_the_number_of_rows():
    counts = []
    for num_rows in (1, 8, 32):
        case = Case(Rows([(150 + row, 1) for row in range(num_rows)]))
        counts.append(count_operations(case.run))
    assert counts[0] == counts[1] == counts[2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=40), st.sampled_from([1, 8, 16, 32]), st.integers(0, 100))
def test_padding_depends_on_a_rows_own_length(lens, tokens_per_block, window):
    rows = Rows([(seq_len, 1) for seq_len in lens])
    table = block_tables(lens, tokens_per_block, torch.Generator().manual_seed(0))
    prepared = prepare(attention_batch(rows, table, tokens_per_block), tokens_per_block, torch.float32, window)
    seen = {}
    for group in prepared.decode:
        index = np.arange(len(lens))[group.rows]
        keys = group.slots.numel() // group.num_rows
        seen.update(dict.fromkeys(index.tolist(), keys))
        for row, slots, mask in zip(index, group.slots.view(len(index), -1), group.mask[:, 0, 0], strict=True):
            visible = range(max(0, lens[row] - window) if window else 0, lens[row])
            blocks = [int(table[row, position // tokens_per_block]) for position in visible]
            expected = [
                block * tokens_per_block + p % tokens_per_block for block, p in zip(blocks, visible, strict=True)
            ]
            assert slots[mask == 0].tolist() == expected
            assert set(slots[mask != 0].tolist()) <= set(expected[:1])
    assert sorted(seen) == [row for row, seq_len in enumerate(lens) if seq_len]
    for row, keys in seen.items():
        visible = min(lens[row], window or lens[row])
        blocks = -(-visible // tokens_per_block)
        assert keys == max(64, tokens_per_block << (blocks - 1).bit_length())
