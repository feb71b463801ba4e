"""Writes the keys and values of a step's tokens into the paged cache.

Shapes: T tokens, K key-value heads, D head size.
"""

import torch


def kv_store(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Stores `key` and `value` [T, K, D] at `slot_mapping` (int64 [T]) of the caches [blocks, tokens per block, K, D].

    Slots are distinct but for those of block 0, which hold whichever token came last.
    """
    kv_store_cpu(key, value, k_cache, v_cache, slot_mapping)


def kv_store_cpu(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Plain torch, on any device."""
    width = key.shape[1] * key.shape[2]
    k_cache.view(-1, width).index_copy_(0, slot_mapping, key.flatten(1))
    v_cache.view(-1, width).index_copy_(0, slot_mapping, value.flatten(1))


def kv_store_ref(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """One token at a time."""
    tokens_per_block = k_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        k_cache[slot // tokens_per_block, slot % tokens_per_block] = key[token]
        v_cache[slot // tokens_per_block, slot % tokens_per_block] = value[token]
