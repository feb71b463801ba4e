"""RMS normalisation, with and without the residual."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels.rms_norm import add_rms_norm, add_rms_norm_ref, rms_norm, rms_norm_ref

SHAPES = [(1, 1), (1, 576), (3, 33), (32, 240), (129, 1000)]


def inputs(num_tokens, channels, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(channels)
    scale = torch.rand(num_tokens, 1, generator=generator) * 10
    x = (torch.randn(num_tokens, channels, generator=generator) * scale).to(device, dtype)
    return x, torch.rand(channels, generator=generator).add(0.5).to(device, dtype)


@pytest.mark.parametrize(("num_tokens", "channels"), SHAPES)
def test_equals_the_reference(num_tokens, channels, dtype, device):
    x, weight = inputs(num_tokens, channels, dtype, device)
    before = x.clone()
    check("rms_norm", rms_norm(x, weight, 1e-5), rms_norm_ref(x.double(), weight.double(), 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("num_tokens", "channels"), SHAPES)
def test_adds_to_the_residual_in_place(num_tokens, channels, dtype, device):
    x, weight = inputs(num_tokens, channels, dtype, device)
    residual = torch.randn(num_tokens, channels, generator=torch.Generator().manual_seed(9)).to(device, dtype)
    total = residual + x  # rounded to the dtype: that is what is normalised
    out = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    check("rms_norm", out, rms_norm_ref(total.double(), weight.double(), 1e-5))


def test_the_reference_of_adding(device):
    x, weight = inputs(5, 40, torch.float32, device)
    residual = torch.randn(5, 40, generator=torch.Generator().manual_seed(9)).to(device)
    expected_residual = residual.double()
    expected = add_rms_norm_ref(x.double(), expected_residual, weight.double(), 1e-5)
    check("rms_norm", add_rms_norm(x, residual, weight, 1e-5), expected)
    check("rms_norm", residual, expected_residual)


def test_zeros_stay_zeros_and_nan_stays_in_its_row(device):
    x = torch.zeros(3, 8, device=device)
    x[1, 2] = torch.nan
    out = rms_norm(x, torch.ones(8, device=device), 1e-5)
    assert (out[[0, 2]] == 0).all()
    assert torch.isnan(out[1]).all()


@pytest.mark.parametrize("channels", [33, 576, 4096])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_has_the_same_bits_alone_and_in_a_batch(channels, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = inputs(205, channels, torch.float32)
        out = rms_norm(x, weight, 1e-5)
        for start, end in ((0, 1), (1, 2), (204, 205), (3, 20), (0, 101)):
            assert torch.equal(rms_norm(x[start:end], weight, 1e-5), out[start:end])
    finally:
        torch.set_num_threads(before)
