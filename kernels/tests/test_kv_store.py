"""Writing keys and values by slot."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.kv_store import kv_store, kv_store_ref


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "heads", "dim"), [(1, 1, 2), (7, 3, 34), (64, 2, 40)])
def test_writes_its_slots_and_no_other(num_tokens, heads, dim, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    # As the model passes them: parts of one wider tensor, not contiguous.
    fused = torch.randn(num_tokens, 3 * heads, dim, generator=generator).to(dtype)
    key, value = fused[:, heads : 2 * heads], fused[:, 2 * heads :]
    slots = torch.randperm(10 * 16 - 16, generator=generator)[:num_tokens] + 16
    caches = [torch.full((10, 16, heads, dim), torch.nan, dtype=dtype) for _ in range(2)]
    expected = [cache.double() for cache in caches]
    kv_store(key, value, *caches, slots)
    kv_store_ref(key.double(), value.double(), *expected, slots)
    for cache, reference in zip(caches, expected, strict=True):
        written = ~torch.isnan(reference)
        assert torch.equal(torch.isnan(cache), ~written)
        check("kv_store", cache[written], reference[written])


def test_padded_tokens_share_block_0():
    cache = torch.full((2, 4, 1, 2), torch.nan), torch.full((2, 4, 1, 2), torch.nan)
    kv_store(torch.ones(3, 1, 2), torch.ones(3, 1, 2), *cache, torch.tensor([0, 0, 5]))
    assert torch.isfinite(cache[0]).sum() == 4
    assert torch.isfinite(cache[0][1, 1]).all()
