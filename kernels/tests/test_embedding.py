"""Embedding lookup in a part of the vocabulary."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.embedding import embedding, embedding_ref


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first_id", "rows"), [(0, 50), (17, 17), (34, 16)])
def test_equals_the_reference(first_id, rows, stored):
    table = torch.randn(rows, 33, generator=torch.Generator().manual_seed(rows)).to(stored)
    ids = torch.arange(50)
    expected = embedding_ref(ids, table, first_id, torch.float64)
    check("embedding", embedding(ids, table, first_id, torch.float32), expected)


def test_parts_add_up_to_the_whole():
    table = torch.randn(50, 8)
    ids = torch.randint(0, 50, (100,))
    parts = [embedding(ids, table[start : start + 17], start, torch.float32) for start in (0, 17, 34)]
    assert torch.equal(sum(parts), table[ids])


def test_a_missing_id_gives_zeros_though_the_table_is_nan():
    out = embedding(torch.tensor([3, 9]), torch.full((4, 2), torch.nan), 0, torch.float32)
    assert torch.isnan(out[0]).all()
    assert (out[1] == 0).all()
