# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
"""Prompt rows: several tokens of one row, the last of its keys; causal, over whatever prefix is cached.

A tile's rows are (token, head of the group) pairs, so the heads of one KV head share each tile of keys and values.
Tiles of keys that every token sees whole need no mask and run in a loop of their own.
"""

import triton
import triton.language as tl

from penstock_kernels.attention_softmax import capped, finite


@triton.jit
def _attend(
    state,  # acc [BLOCK_ROWS, DIM], peak and weight [BLOCK_ROWS]
    queries,
    caches,  # keys and values, at this KV head
    table_row,
    span,  # first key of a tile, end, and the first key that any token sees
    positions,  # [BLOCK_ROWS]
    constants,  # multiplier, inner
    SHAPE: tl.constexpr,  # elements between two slots, HEAD_DIM, PAGE
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """`state` after the keys of `span`."""
    acc, peak, weight = state
    k_cache, v_cache = caches
    begin, end, first_seen = span
    multiplier, inner = constants
    SLOT: tl.constexpr = SHAPE[0]
    HEAD_DIM: tl.constexpr = SHAPE[1]
    PAGE: tl.constexpr = SHAPE[2]
    DIM: tl.constexpr = queries.shape[1]
    dims, tile_keys = tl.arange(0, DIM), tl.arange(0, BLOCK_KEYS)
    pages = tl.load(table_row + (begin + tile_keys) // PAGE, mask=begin + tile_keys < end, other=0)
    for start in range(begin, end, BLOCK_KEYS):
        keys = start + tile_keys
        slots = pages.to(tl.int64) * PAGE + keys % PAGE
        offsets = slots[:, None] * SLOT + dims[None, :]
        if MASKED:
            mask = ((keys >= first_seen) & (keys < end))[:, None] & (dims < HEAD_DIM)[None, :]
            # Values that nobody sees are zeroed here: 0 times a former owner's NaN would be NaN.
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        elif HEAD_DIM != DIM:
            mask = (dims < HEAD_DIM)[None, :] & (keys >= 0)[:, None]
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        else:
            k = tl.load(k_cache + offsets)
            v = tl.load(v_cache + offsets)
        # Looked up one tile ahead: a load that waits for another load is not prefetched.
        following = keys + BLOCK_KEYS
        pages = tl.load(table_row + following // PAGE, mask=following < end, other=0)

        scores = capped(tl.dot(queries, tl.trans(k), input_precision="ieee"), inner, SOFTCAP)
        if MASKED:
            visible = keys[None, :] <= positions[:, None]
            if WINDOW > 0:
                visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * multiplier)
        base = finite(new_peak)
        probs = tl.exp2(scores * multiplier - base[:, None])
        decay = tl.exp2(peak - base)
        weight = weight * decay + tl.sum(probs, 1)
        acc = tl.dot(probs.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
    return acc, peak, weight


@triton.jit(
    do_not_specialize=["table_stride", "num_rows", "num_tokens"],
    do_not_specialize_on_alignment=["block_table", "seq_lens", "query_starts"],
)
def prompt_kernel(
    query,  # [T, H, D], heads and dims contiguous
    k_cache,
    v_cache,
    out,  # [T, H, D] contiguous
    block_table,
    seq_lens,
    query_starts,
    prompt_items,
    totals,
    query_stride,
    table_stride,
    num_rows,
    num_tokens,
    multiplier,
    inner,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HEADS: tl.constexpr,  # of a group in one tile
    BLOCK_ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One program per (tile of tokens, block of heads); those beyond the step's tiles do nothing."""
    BLOCKS_PER_KV_HEAD: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    HEAD_BLOCKS: tl.constexpr = KV_HEADS * BLOCKS_PER_KV_HEAD
    TILE_TOKENS: tl.constexpr = BLOCK_ROWS // HEADS
    # A row's last tiles see the most keys: they start first.
    item = tl.load(totals + 1) - 1 - tl.program_id(0) // HEAD_BLOCKS
    if item < 0:
        return
    head_block = tl.program_id(0) % HEAD_BLOCKS
    kv_head = head_block // BLOCKS_PER_KV_HEAD
    row, tile = tl.load(prompt_items + item * 2), tl.load(prompt_items + item * 2 + 1)
    seq_len = tl.load(seq_lens + row, mask=row < num_rows, other=0)
    tokens_begin = tl.load(query_starts + row)
    tokens_end = tl.load(query_starts + row + 1, mask=row < num_rows, other=0)
    tokens_end = tl.where(row < num_rows, tokens_end, num_tokens)
    first_token = tokens_begin + tile * TILE_TOKENS
    num_queries = tl.minimum(tokens_end - first_token, TILE_TOKENS)
    first_position = seq_len - (tokens_end - first_token)

    rows, dims = tl.arange(0, BLOCK_ROWS), tl.arange(0, DIM)
    heads = head_block % BLOCKS_PER_KV_HEAD * HEADS + rows % HEADS
    row_mask = (rows // HEADS < num_queries) & (heads < GROUP)
    mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (first_token + rows // HEADS).to(tl.int64)
    head_offsets = ((kv_head * GROUP + heads) * HEAD_DIM)[:, None] + dims[None, :]
    queries = tl.load(query + (tokens * query_stride)[:, None] + head_offsets, mask=mask, other=0.0)

    positions = first_position + rows // HEADS
    caches = (k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM)
    table_row = block_table + row.to(tl.int64) * table_stride
    end = tl.minimum(first_position + num_queries, seq_len)
    # Every token of the tile sees the keys up to the first one's own, and with a window from the last one's first on.
    whole_end = tl.maximum(first_position + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
    first_seen, begin, whole_begin = 0, 0, 0
    if WINDOW > 0:
        first_seen = tl.maximum(first_position - WINDOW + 1, 0)
        begin = first_seen // BLOCK_KEYS * BLOCK_KEYS
        whole_end = tl.maximum(whole_end, begin)
        whole_begin = tl.cdiv(tl.maximum(first_position + num_queries - WINDOW, 0), BLOCK_KEYS) * BLOCK_KEYS
        whole_begin = tl.minimum(whole_begin, whole_end)
    state = (
        tl.zeros([BLOCK_ROWS, DIM], tl.float32),
        tl.full([BLOCK_ROWS], float("-inf"), tl.float32),
        tl.zeros([BLOCK_ROWS], tl.float32),
    )
    SHAPE: tl.constexpr = (KV_HEADS * HEAD_DIM, HEAD_DIM, PAGE)
    constants = (multiplier, inner)
    if WINDOW > 0:
        span = (begin, whole_begin, first_seen)
        state = _attend(
            state, queries, caches, table_row, span, positions, constants, SHAPE, WINDOW, SOFTCAP, BLOCK_KEYS, True
        )
    span = (whole_begin, whole_end, first_seen)
    state = _attend(
        state, queries, caches, table_row, span, positions, constants, SHAPE, WINDOW, SOFTCAP, BLOCK_KEYS, False
    )
    span = (whole_end, end, first_seen)
    acc, _, weight = _attend(
        state, queries, caches, table_row, span, positions, constants, SHAPE, WINDOW, SOFTCAP, BLOCK_KEYS, True
    )
    result = acc / tl.where(weight == 0.0, 1.0, weight)[:, None]
    target = out + (tokens * (KV_HEADS * GROUP * HEAD_DIM))[:, None] + head_offsets
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)
