# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
"""Cuts a step's rows into pieces of work, on the device, once per step.

A decode row is one piece, or one piece per segment where it is longer than its share of the step: then its segments
run side by side and the last one to finish folds them. Which of the two only decides who does what; bits do not change.
A prompt row is one piece per tile of its tokens. The step's padded tokens count as one more prompt row without keys.
"""

import triton
import triton.language as tl

from penstock_kernels.attention_softmax import first_key, segment_keys

_CHUNK = tl.constexpr(256)


@triton.jit
def _decode_pieces(rows, num_decode_rows, seq_lens, WINDOW: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """Keys and segments of `rows`; none for rows that are not decode rows."""
    is_decode = rows < num_decode_rows
    seq_len = tl.load(seq_lens + rows, mask=is_decode, other=0)
    num_keys = seq_len - first_key(seq_len, WINDOW) // BLOCK_KEYS * BLOCK_KEYS
    return num_keys, tl.cdiv(num_keys, segment_keys(num_keys)), is_decode


@triton.jit
def _prompt_tiles(rows, row_counts, query_starts, num_tokens, TILE_TOKENS: tl.constexpr):
    """Tiles of `rows`; none for decode rows. `row_counts`: all rows and decode rows."""
    num_rows, num_decode_rows = row_counts
    is_prompt = (rows >= num_decode_rows) & (rows <= num_rows)
    start = tl.load(query_starts + rows, mask=is_prompt, other=0)
    end = tl.load(query_starts + rows + 1, mask=is_prompt & (rows < num_rows), other=0)
    end = tl.where(rows == num_rows, num_tokens, end)
    return tl.where(is_prompt, tl.cdiv(end - start, TILE_TOKENS), 0)


@triton.jit(
    do_not_specialize=["num_rows", "num_tokens", "num_shares"],
    do_not_specialize_on_alignment=["seq_lens", "query_starts", "decode_rows"],
)
def plan_kernel(
    seq_lens,
    query_starts,
    decode_rows,
    decode_items,  # int32 [items, 3]: row, segment (-1: all of them), number among the rows that are cut
    prompt_items,  # int32 [tiles, 2]: row, tile
    totals,  # int32 [2]: how many of each there are
    counters,  # int32 [cut rows, head blocks]: segments that have finished
    num_rows,
    num_tokens,
    num_shares,
    WINDOW: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
):
    """One program per row, one for the padding. Each adds up what comes before its row, so none waits for another."""
    row = tl.program_id(0)
    num_decode_rows = tl.load(decode_rows)
    all_keys = 0
    for begin in range(0, num_decode_rows, _CHUNK):
        rows = begin + tl.arange(0, _CHUNK)
        num_keys, _, _ = _decode_pieces(rows, num_decode_rows, seq_lens, WINDOW, BLOCK_KEYS)
        all_keys += tl.sum(num_keys)
    all_items, items_before, cut_before, all_tiles, tiles_before = 0, 0, 0, 0, 0
    for begin in range(0, num_rows + 1, _CHUNK):
        rows = begin + tl.arange(0, _CHUNK)
        num_keys, segments, is_decode = _decode_pieces(rows, num_decode_rows, seq_lens, WINDOW, BLOCK_KEYS)
        is_cut = (segments > 1) & (num_keys * num_shares > all_keys)
        items = tl.where(is_decode, tl.where(is_cut, segments, 1), 0)
        all_items += tl.sum(items)
        items_before += tl.sum(tl.where(rows < row, items, 0))
        cut_before += tl.sum(tl.where(rows < row, is_cut.to(tl.int32), 0))
        tiles = _prompt_tiles(rows, (num_rows, num_decode_rows), query_starts, num_tokens, TILE_TOKENS)
        all_tiles += tl.sum(tiles)
        tiles_before += tl.sum(tl.where(rows < row, tiles, 0))
    num_keys, segments, is_decode = _decode_pieces(row, num_decode_rows, seq_lens, WINDOW, BLOCK_KEYS)
    is_cut = (segments > 1) & (num_keys * num_shares > all_keys)
    num_items = tl.where(is_decode, tl.where(is_cut, segments, 1), 0)
    for item in range(num_items):
        target = decode_items + (items_before + item) * 3
        tl.store(target, row)
        tl.store(target + 1, tl.where(is_cut, item, -1))
        tl.store(target + 2, cut_before)
    if is_cut:
        for head_block in range(HEAD_BLOCKS):
            tl.store(counters + cut_before * HEAD_BLOCKS + head_block, 0)
    num_tiles = _prompt_tiles(row, (num_rows, num_decode_rows), query_starts, num_tokens, TILE_TOKENS)
    for begin in range(0, num_tiles, _CHUNK):
        tile = begin + tl.arange(0, _CHUNK)
        target = prompt_items + (tiles_before + tile) * 2
        tl.store(target, tile * 0 + row, mask=tile < num_tiles)
        tl.store(target + 1, tile, mask=tile < num_tiles)
    if row == num_rows:
        tl.store(totals, all_items)
        tl.store(totals + 1, all_tiles)
