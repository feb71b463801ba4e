"""Turns a step's queries and keys by their positions and writes its keys and values into the paged cache, in one call.

Shapes: T tokens, H query heads, K key-value heads, D head size (even). Angles and layout are those of `rotary`.
"""

import torch

from penstock_kernels.kv_store import kv_store_cpu, kv_store_ref
from penstock_kernels.rotary import rotary_cpu, rotary_ref
from penstock_kernels.triton_support import uses_triton

Pair = tuple[torch.Tensor, torch.Tensor]


def rotary_kv_store(qkv: torch.Tensor, rotation: Pair, caches: Pair, slot_mapping: torch.Tensor) -> torch.Tensor:
    """Turned queries [T, H, D] of `qkv` [T, H + 2 K, D], which holds queries, keys, then values.

    `rotation`: cosines and signed sines [T, 1, D] that `rotation` made. `caches`: keys and values, each [blocks, tokens
    per block, K, D], written at `slot_mapping` (int64 [T]); slots are distinct but for those of block 0.
    """
    if uses_triton(qkv):
        from penstock_kernels.rotary_kv_store_triton import rotary_kv_store_triton

        return rotary_kv_store_triton(qkv, rotation, caches, slot_mapping)
    return rotary_kv_store_cpu(qkv, rotation, caches, slot_mapping)


def rotary_kv_store_cpu(qkv: torch.Tensor, rotation: Pair, caches: Pair, slot_mapping: torch.Tensor) -> torch.Tensor:
    """Plain torch, on any device: one operation after the other."""
    num_kv_heads = caches[0].shape[2]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    turned = rotary_cpu(qkv[:, : num_heads + num_kv_heads], *rotation)
    kv_store_cpu(turned[:, num_heads:], qkv[:, num_heads + num_kv_heads :], *caches, slot_mapping)
    return turned[:, :num_heads]


def rotary_kv_store_ref(
    qkv: torch.Tensor, angles: torch.Tensor, caches: Pair, slot_mapping: torch.Tensor
) -> torch.Tensor:
    """The references of both operations; `angles` [T, D / 2]."""
    num_kv_heads = caches[0].shape[2]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    turned = rotary_ref(qkv[:, : num_heads + num_kv_heads], angles)
    kv_store_ref(turned[:, num_heads:], qkv[:, num_heads + num_kv_heads :], *caches, slot_mapping)
    return turned[:, :num_heads]
