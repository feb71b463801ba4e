"""Rotary embedding."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.rotary import rotary, rotary_ref, rotation


def angles_of(num_tokens, head_dim):
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return torch.randint(0, 5000, (num_tokens, 1), generator=torch.Generator().manual_seed(7)) * frequencies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "heads", "head_dim"), [(1, 1, 2), (5, 3, 34), (33, 9, 64), (130, 2, 128)])
def test_equals_the_reference(num_tokens, heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    fused = torch.randn(num_tokens, heads + 2, head_dim, generator=generator).to(dtype)
    view = fused[:, :heads]  # as the model passes it
    before = view.clone()
    angles = angles_of(num_tokens, head_dim)
    out = rotary(view, *rotation(angles, dtype))
    check("rotary", out, rotary_ref(view.double(), angles.double()))
    assert torch.equal(view, before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_has_the_same_bits_alone_and_in_a_batch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        heads = torch.randn(701, 5, 34, generator=torch.Generator().manual_seed(1))
        angles = angles_of(701, 34)
        out = rotary(heads, *rotation(angles, torch.float32))
        for start, end in ((0, 1), (1, 2), (700, 701), (3, 20), (0, 333)):
            part = rotary(heads[start:end], *rotation(angles[start:end], torch.float32))
            assert torch.equal(part, out[start:end])
    finally:
        torch.set_num_threads(before)
