"""Rotary embedding and the store of keys and values on a GPU, in one kernel; normalised and turned in float32.

Shapes: T tokens, H query heads, K key-value heads, D head size. One program turns a few heads of one token.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from penstock_kernels.overlap import launch_options, wait_for_inputs
from penstock_kernels.rotary_kv_store import HeadNorm
from penstock_kernels.triton_support import power_of_two

_HEADS = 4  # of a program

Pair = tuple[torch.Tensor, torch.Tensor]


def rotary_kv_store_triton(
    qkv: torch.Tensor, rotation: Pair, caches: Pair, slot_mapping: torch.Tensor, norm: HeadNorm | None = None
) -> torch.Tensor:
    """See `rotary_kv_store`. The caches and the rotation must be contiguous."""
    assert all(tensor.is_contiguous() for tensor in (*rotation, *caches))
    num_tokens, num_all_heads, head_dim = qkv.shape
    num_kv_heads = caches[0].shape[2]
    num_heads = num_all_heads - 2 * num_kv_heads
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    _rotary_kv_store_kernel[(num_tokens, -(-num_all_heads // _HEADS))](
        qkv.contiguous(),
        *rotation,
        query,
        *caches,
        slot_mapping,
        *((query, query, 0.0) if norm is None else (norm.query_weight, norm.key_weight, norm.epsilon)),
        has_norm=norm is not None,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        heads=_HEADS,
        block=power_of_two(head_dim // 2),
        num_warps=1,
        **launch_options(qkv.device),
    )
    return query


# Slots lie at any multiple of 8 bytes where they are part of a larger tensor: one compiled kernel serves all.
@triton.jit(do_not_specialize_on_alignment=["slot_mapping_ptr"])
def _rotary_kv_store_kernel(
    qkv_ptr,  # [T, H + 2 K, D]
    cosine_ptr,  # [T, D]
    signed_sine_ptr,  # [T, D]
    query_ptr,  # [T, H, D]
    keys_ptr,  # [slots, K, D]
    values_ptr,  # [slots, K, D]
    slot_mapping_ptr,  # int64 [T]
    query_weight_ptr,  # [D], read if `has_norm`, as the two below
    key_weight_ptr,  # [D]
    epsilon,
    has_norm: tl.constexpr,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    heads: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    wait_for_inputs(overlaps)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    head = tl.program_id(1) * heads + tl.arange(0, heads)[:, None]
    column = tl.arange(0, block)[None, :]
    half: tl.constexpr = head_dim // 2
    inside = (column < half) & (head < num_heads + 2 * num_kv_heads)

    in_ptr = qkv_ptr + (token * (num_heads + 2 * num_kv_heads) + head) * head_dim + column
    first = tl.load(in_ptr, mask=inside, other=0.0)
    second = tl.load(in_ptr + half, mask=inside, other=0.0)
    # The second half's factors: the first half's sines have the other sign, its cosines are the same.
    factor = token * head_dim + half + column
    cosine = tl.load(cosine_ptr + factor, mask=column < half, other=0.0).to(tl.float32)
    sine = tl.load(signed_sine_ptr + factor, mask=column < half, other=0.0).to(tl.float32)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    if has_norm:
        squares = tl.sum(wide_first * wide_first + wide_second * wide_second, axis=1, keep_dims=True)
        scale = tl.rsqrt(squares / head_dim + epsilon)
        weight_ptr = tl.where(head < num_heads, query_weight_ptr, key_weight_ptr) + column
        wide_first *= scale * tl.load(weight_ptr, mask=inside, other=0.0).to(tl.float32)
        wide_second *= scale * tl.load(weight_ptr + half, mask=inside, other=0.0).to(tl.float32)
    turned_first = (wide_first * cosine - wide_second * sine).to(first.dtype)
    turned_second = (wide_second * cosine + wide_first * sine).to(first.dtype)

    is_query = inside & (head < num_heads)
    out_ptr = query_ptr + (token * num_heads + head) * head_dim + column
    tl.store(out_ptr, turned_first, mask=is_query)
    tl.store(out_ptr + half, turned_second, mask=is_query)

    kv_head = head - num_heads
    is_key = inside & (kv_head >= 0) & (kv_head < num_kv_heads)
    out_ptr = keys_ptr + (slot * num_kv_heads + kv_head) * head_dim + column
    tl.store(out_ptr, turned_first, mask=is_key)
    tl.store(out_ptr + half, turned_second, mask=is_key)

    kv_head -= num_kv_heads
    is_value = inside & (kv_head >= 0)
    out_ptr = values_ptr + (slot * num_kv_heads + kv_head) * head_dim + column
    tl.store(out_ptr, first, mask=is_value)
    tl.store(out_ptr + half, second, mask=is_value)
