"""SiLU times up."""

import pytest
import torch
from kernel_testkit.tolerance import check
from kernel_testkit.triton_device import INTERPRETED

from penstock_kernels.silu_mul import silu_mul, silu_mul_ref


@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1), (3, 33), (8, 200), (2, 1030)])
def test_equals_the_reference(num_tokens, size, dtype, device):
    gate_up = torch.randn(num_tokens, 2 * size, generator=torch.Generator().manual_seed(size)).mul(4).to(device, dtype)
    before = gate_up.clone()
    check("silu_mul", silu_mul(gate_up), silu_mul_ref(gate_up.cpu().double()))
    assert torch.equal(gate_up, before)


def test_large_gates_neither_overflow_nor_lose_their_sign(device):
    gate_up = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = silu_mul_ref(gate_up.double())
    check("silu_mul", silu_mul(gate_up.to(device)), expected)


def test_nan_stays_in_its_element(device):
    gate_up = torch.ones(3, 10)
    gate_up[1, 2] = gate_up[2, 9] = torch.nan
    nan = torch.isnan(silu_mul(gate_up.to(device)))
    assert nan.nonzero().tolist() == [[1, 2], [2, 4]]


@pytest.mark.skipif(INTERPRETED, reason="torch's threads have no part in a kernel")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [33, 200, 1000])
def test_a_token_has_the_same_bits_alone_and_in_a_batch(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gate_up = torch.randn(601, 2 * size, generator=torch.Generator().manual_seed(1))
        out = silu_mul(gate_up)
        # Many lengths: where a thread's range ends decides which elements torch would treat apart.
        for start, end in ((0, 1), (1, 2), (600, 601), (3, 20), *((0, end) for end in range(20, 601, 7))):
            assert torch.equal(silu_mul(gate_up[start:end]), out[start:end])
    finally:
        torch.set_num_threads(before)
