# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
"""Decode rows: one query token, all of its keys. Bound by memory, so the design is about keeping loads in flight.

The heads of one KV head share its keys and values, and are the narrow side of both products: scores [BLOCK_KEYS, ROWS]
= K Q^T, out [DIM, ROWS] = V^T P. A fixed number of programs takes pieces of work in turn; the block of keys that comes
next is looked up one tile ahead, because a load that waits for another load is not prefetched.
"""

import triton
import triton.language as tl

from penstock_kernels.attention_softmax import capped, finite, first_key, fold, segment_keys
from penstock_kernels.overlap import wait_for_inputs


@triton.jit
def _store_out(out_ptr, out, weight, heads, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """Stores out [DIM, ROWS] over its weight. A row without keys has weight 0 and gives zeros."""
    dims = tl.arange(0, DIM)
    result = out / tl.where(weight == 0.0, 1.0, weight)[None, :]
    target = out_ptr + heads[None, :] * HEAD_DIM + dims[:, None]
    mask = (heads < GROUP)[None, :] & (dims < HEAD_DIM)[:, None]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_part(part_out, part_stats, rows, mask, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """One segment's partial result: out [DIM, ROWS], peak and weight [ROWS]; empty where `mask` is not set.

    ".cg" reads past the first-level cache, which may hold what the layer before left there.
    """
    dims = tl.arange(0, DIM)
    source = part_out + rows[None, :] * HEAD_DIM + dims[:, None]
    out = tl.load(source, mask=mask[None, :] & (dims < HEAD_DIM)[:, None], other=0.0, cache_modifier=".cg")
    peak = tl.load(part_stats + rows * 2, mask=mask, other=float("-inf"), cache_modifier=".cg")
    weight = tl.load(part_stats + rows * 2 + 1, mask=mask, other=0.0, cache_modifier=".cg")
    return out, peak, weight


@triton.jit(
    do_not_specialize=["table_stride", "max_segments"],
    do_not_specialize_on_alignment=["block_table", "seq_lens"],
)
def decode_kernel(
    query,  # [T, H, D], heads and dims contiguous
    k_cache,
    v_cache,
    out,  # [T, H, D] contiguous
    block_table,
    seq_lens,
    decode_items,
    totals,
    counters,
    part_out,  # float32 [cut rows, max_segments, H, D]
    part_stats,  # float32 [cut rows, max_segments, H, 2]: peak, weight
    query_stride,
    table_stride,
    max_segments,
    multiplier,
    inner,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Works through all (item, block of heads) pairs. The last segment of a cut row to finish folds the row."""
    BLOCKS_PER_KV_HEAD: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    HEAD_BLOCKS: tl.constexpr = KV_HEADS * BLOCKS_PER_KV_HEAD
    dims, tile_keys = tl.arange(0, DIM), tl.arange(0, BLOCK_KEYS)
    wait_for_inputs(overlaps)
    num_units = tl.load(totals) * HEAD_BLOCKS
    for unit in range(tl.program_id(0), num_units, tl.num_programs(0)):
        item, head_block = unit // HEAD_BLOCKS, unit % HEAD_BLOCKS
        row = tl.load(decode_items + item * 3).to(tl.int64)
        segment = tl.load(decode_items + item * 3 + 1)
        cut_row = tl.load(decode_items + item * 3 + 2)
        seq_len = tl.load(seq_lens + row)
        kv_head = head_block // BLOCKS_PER_KV_HEAD
        heads = head_block % BLOCKS_PER_KV_HEAD * ROWS + tl.arange(0, ROWS)
        head_mask = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        head_offsets = (kv_head * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
        queries = tl.trans(tl.load(query + row * query_stride + head_offsets, mask=head_mask, other=0.0))

        first = first_key(seq_len, WINDOW)
        origin = first // BLOCK_KEYS * BLOCK_KEYS
        keys_each = segment_keys(seq_len - origin)
        begin, end = origin, seq_len
        if segment >= 0:
            begin = origin + segment * keys_each
            end = tl.minimum(begin + keys_each, seq_len)

        total, total_peak = tl.zeros([DIM, ROWS], tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
        total_weight = tl.zeros([ROWS], tl.float32)
        acc, peak, weight = total, total_peak, total_weight
        table_row = block_table + row * table_stride
        pages = tl.load(table_row + (begin + tile_keys) // PAGE, mask=begin + tile_keys < end, other=0)
        for start in range(begin, end, BLOCK_KEYS):
            # At a segment's first tile, what the segment before it has found joins the row's total.
            is_first = (start - origin) % keys_each == 0
            folded, folded_peak, folded_weight = fold(total, total_peak, total_weight, acc, peak, weight)
            total = tl.where(is_first, folded, total)
            total_peak = tl.where(is_first, folded_peak, total_peak)
            total_weight = tl.where(is_first, folded_weight, total_weight)
            acc, weight = tl.where(is_first, 0.0, acc), tl.where(is_first, 0.0, weight)
            peak = tl.where(is_first, float("-inf"), peak)

            keys = start + tile_keys
            slots = pages.to(tl.int64) * PAGE + keys % PAGE
            offsets = (slots * KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
            visible = keys < end
            if WINDOW > 0:
                visible = visible & (keys >= first)
            mask = visible[:, None]
            if HEAD_DIM != DIM:
                mask = mask & (dims < HEAD_DIM)[None, :]
            # Values that are not the row's own are zeroed here: 0 times a former owner's NaN would be NaN.
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
            following = keys + BLOCK_KEYS
            pages = tl.load(table_row + following // PAGE, mask=following < end, other=0)

            scores = capped(tl.dot(k, queries, input_precision="ieee"), inner, SOFTCAP)
            scores = tl.where(visible[:, None], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 0) * multiplier)
            base = finite(new_peak)
            probs = tl.exp2(scores * multiplier - base[None, :])
            decay = tl.exp2(peak - base)
            weight = weight * decay + tl.sum(probs, 0)
            acc = tl.dot(tl.trans(v), probs.to(v.dtype), acc * decay[None, :], input_precision="ieee")
            peak = new_peak

        out_row = out + (row * KV_HEADS + kv_head) * (GROUP * HEAD_DIM)
        if segment < 0:
            total, total_peak, total_weight = fold(total, total_peak, total_weight, acc, peak, weight)
            _store_out(out_row, total, total_weight, heads, GROUP, HEAD_DIM, DIM)
        else:
            part_heads = (cut_row.to(tl.int64) * max_segments * KV_HEADS + kv_head) * GROUP + heads
            mine = part_heads + segment * (KV_HEADS * GROUP)
            part_mask = (heads < GROUP)[None, :] & (dims < HEAD_DIM)[:, None]
            tl.store(part_out + mine[None, :] * HEAD_DIM + dims[:, None], acc, mask=part_mask)
            tl.store(part_stats + mine * 2, peak, mask=heads < GROUP)
            tl.store(part_stats + mine * 2 + 1, weight, mask=heads < GROUP)
            # Every thread's stores come before the one thread that counts this segment as finished.
            tl.debug_barrier()
            num_segments = tl.cdiv(seq_len - origin, keys_each)
            counter = counters + cut_row * HEAD_BLOCKS + head_block
            if tl.atomic_add(counter, 1, sem="acq_rel") == num_segments - 1:
                # A state of its own, in the layout in which parts are loaded: converting each would wait for each.
                state = (
                    tl.zeros([DIM, ROWS], tl.float32),
                    tl.full([ROWS], float("-inf"), tl.float32),
                    tl.zeros([ROWS], tl.float32),
                )
                step = KV_HEADS * GROUP
                for index in range(0, num_segments, 4):
                    # Four at a time, all loaded before the first is used. What lies beyond the last one is empty.
                    where = part_heads + index * step
                    left = num_segments - index
                    part_0 = _load_part(part_out, part_stats, where, (heads < GROUP), HEAD_DIM, DIM)
                    part_1 = _load_part(part_out, part_stats, where + step, (heads < GROUP) & (left > 1), HEAD_DIM, DIM)
                    part_2 = _load_part(
                        part_out, part_stats, where + 2 * step, (heads < GROUP) & (left > 2), HEAD_DIM, DIM
                    )
                    part_3 = _load_part(
                        part_out, part_stats, where + 3 * step, (heads < GROUP) & (left > 3), HEAD_DIM, DIM
                    )
                    state = fold(*state, *part_0)
                    state = fold(*state, *part_1)
                    state = fold(*state, *part_2)
                    state = fold(*state, *part_3)
                _store_out(out_row, state[0], state[2], heads, GROUP, HEAD_DIM, DIM)
                tl.store(counter, 0)
