"""Turns a step's queries and keys by their positions and writes its keys and values into the paged cache, in one call;
normalises each head before, in models that do (QK-norm, Dehghani et al. 2023, arXiv 2302.05442).

Shapes: T tokens, H query heads, K key-value heads, D head size (even). Angles and layout are those of `rotary`.
"""

from dataclasses import dataclass

import torch

from penstock_kernels.kv_store import kv_store_cpu, kv_store_ref
from penstock_kernels.rms_norm import rms_norm_cpu, rms_norm_ref
from penstock_kernels.rotary import rotary_cpu, rotary_ref
from penstock_kernels.triton_support import uses_triton

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS normalisation of every query head and every key head over its D elements, as `rms_norm`."""

    query_weight: torch.Tensor  # [D], as all heads'
    key_weight: torch.Tensor  # [D]
    epsilon: float


def rotary_kv_store(
    qkv: torch.Tensor, rotation: Pair, caches: Pair, slot_mapping: torch.Tensor, norm: HeadNorm | None = None
) -> torch.Tensor:
    """Turned queries [T, H, D] of `qkv` [T, H + 2 K, D], which holds queries, keys, then values.

    `rotation`: cosines and signed sines [T, 1, D] that `rotation` made. `caches`: keys and values, each [blocks, tokens
    per block, K, D], written at `slot_mapping` (int64 [T]); slots are distinct but for those of block 0. `norm`: of
    queries and keys, before they are turned.
    """
    if uses_triton(qkv):
        from penstock_kernels.rotary_kv_store_triton import rotary_kv_store_triton

        return rotary_kv_store_triton(qkv, rotation, caches, slot_mapping, norm)
    return rotary_kv_store_cpu(qkv, rotation, caches, slot_mapping, norm)


def rotary_kv_store_cpu(
    qkv: torch.Tensor, rotation: Pair, caches: Pair, slot_mapping: torch.Tensor, norm: HeadNorm | None = None
) -> torch.Tensor:
    """Plain torch, on any device: one operation after the other."""
    num_kv_heads = caches[0].shape[2]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    heads = qkv[:, : num_heads + num_kv_heads]
    if norm is not None:
        query = rms_norm_cpu(heads[:, :num_heads], norm.query_weight, norm.epsilon)
        heads = torch.cat((query, rms_norm_cpu(heads[:, num_heads:], norm.key_weight, norm.epsilon)), dim=1)
    turned = rotary_cpu(heads, *rotation)
    kv_store_cpu(turned[:, num_heads:], qkv[:, num_heads + num_kv_heads :], *caches, slot_mapping)
    return turned[:, :num_heads]


def rotary_kv_store_ref(
    qkv: torch.Tensor, angles: torch.Tensor, caches: Pair, slot_mapping: torch.Tensor, norm: HeadNorm | None = None
) -> torch.Tensor:
    """The references of all operations; `angles` [T, D / 2]."""
    num_kv_heads = caches[0].shape[2]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    if norm is not None:
        qkv = qkv.clone()
        for heads, weight in (
            (range(num_heads), norm.query_weight),
            (range(num_heads, num_heads + num_kv_heads), norm.key_weight),
        ):
            for head in heads:
                qkv[:, head] = rms_norm_ref(qkv[:, head], weight, norm.epsilon)
    turned = rotary_ref(qkv[:, : num_heads + num_kv_heads], angles)
    kv_store_ref(turned[:, num_heads:], qkv[:, num_heads + num_kv_heads :], *caches, slot_mapping)
    return turned[:, :num_heads]
