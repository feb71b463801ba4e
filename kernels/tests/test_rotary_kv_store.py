"""Turning queries and keys, and storing keys and values by slot, in one call."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.rotary import rotation
from penstock_kernels.rotary_kv_store import HeadNorm, rotary_kv_store, rotary_kv_store_ref

TOKENS_PER_BLOCK = 16


def inputs(num_tokens, heads, head_dim):
    """Fused heads [T, H + 2 K, D], angles [T, D / 2], and slots outside block 0 in random order."""
    generator = torch.Generator().manual_seed(num_tokens)
    num_heads, num_kv_heads = heads
    qkv = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, generator=generator)
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.randint(0, 5000, (num_tokens, 1), generator=generator) * frequencies
    slots = torch.randperm(10 * TOKENS_PER_BLOCK - TOKENS_PER_BLOCK, generator=generator) + TOKENS_PER_BLOCK
    return qkv, angles, slots[:num_tokens]


def caches(num_kv_heads, head_dim, dtype):
    return tuple(torch.full((10, TOKENS_PER_BLOCK, num_kv_heads, head_dim), torch.nan, dtype=dtype) for _ in range(2))


def head_norm(head_dim):
    generator = torch.Generator().manual_seed(head_dim)
    return HeadNorm(*(1 + torch.randn(2, head_dim, generator=generator) / 4), epsilon=1e-3)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "heads", "head_dim"), [(1, (1, 1), 2), (7, (6, 2), 40), (33, (9, 3), 64), (40, (4, 1), 34)]
)
def test_equals_the_reference_and_writes_no_other_slot(num_tokens, heads, head_dim, normed, dtype, device):
    qkv, angles, slots = inputs(num_tokens, heads, head_dim)
    qkv = (3 * qkv if normed else qkv).to(device, dtype)
    norm, wide_norm = None, None
    if normed:
        norm = head_norm(head_dim)
        weights = [weight.to(device, dtype) for weight in (norm.query_weight, norm.key_weight)]
        norm, wide_norm = (HeadNorm(*part, norm.epsilon) for part in (weights, [w.cpu().double() for w in weights]))
    before = qkv.clone()
    pools = tuple(pool.to(device) for pool in caches(heads[1], head_dim, dtype))
    factors = rotation(angles.to(device), dtype)
    query = rotary_kv_store(qkv, factors, pools, slots.to(device), norm)
    assert torch.equal(qkv, before)

    expected_pools = caches(heads[1], head_dim, torch.float64)
    expected = rotary_kv_store_ref(qkv.cpu().double(), angles.double(), expected_pools, slots, wide_norm)
    turned = "normed_rotary" if normed else "rotary"
    check(turned, query, expected)
    for name, pool, expected in zip((turned, "kv_store"), pools, expected_pools, strict=True):
        written = ~torch.isnan(expected)
        assert torch.equal(torch.isnan(pool.cpu()), ~written)
        check(name, pool.cpu()[written], expected[written])


def test_padded_tokens_share_block_0_and_nan_stays_in_its_token(device):
    qkv, angles, _ = inputs(5, (2, 1), 8)
    qkv[3] = torch.nan
    slots = torch.tensor([0, 0, 20, 40, 22])
    pools = tuple(pool.to(device) for pool in caches(1, 8, torch.float32))
    query = rotary_kv_store(qkv.to(device), rotation(angles.to(device), torch.float32), pools, slots.to(device))
    assert torch.isnan(query).all(-1).all(-1).tolist() == [False, False, False, True, False]
    for pool in pools:
        finite = torch.isfinite(pool.cpu().view(-1, 8)).all(-1)
        assert finite.nonzero().flatten().tolist() == [0, 20, 22]
