"""Embedding lookup in a part of the vocabulary."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.embedding import embedding, embedding_ref


@pytest.mark.parametrize(("first_id", "rows"), [(0, 50), (17, 17), (34, 16)])
@pytest.mark.parametrize("channels", [1, 33, 1100])
def test_equals_the_reference(first_id, rows, channels, dtype, device):
    table = torch.randn(rows, channels, generator=torch.Generator().manual_seed(rows)).to(device, dtype)
    ids = torch.arange(50, device=device)
    expected = embedding_ref(ids, table, first_id, torch.float64)
    check("embedding", embedding(ids, table, first_id, dtype), expected)
    check("embedding", embedding(ids, table, first_id, torch.float32), expected)


def test_parts_add_up_to_the_whole(device):
    table = torch.randn(50, 8, device=device)
    ids = torch.randint(0, 50, (100,), device=device)
    parts = [embedding(ids, table[start : start + 17], start, torch.float32) for start in (0, 17, 34)]
    assert torch.equal(sum(parts), table[ids])


def test_a_missing_id_gives_zeros_though_the_table_is_nan(device):
    ids, table = torch.tensor([3, 9, -1], device=device), torch.full((4, 2), torch.nan, device=device)
    out = embedding(ids, table, 0, torch.float32)
    assert torch.isnan(out[0]).all()
    assert (out[1:] == 0).all()
