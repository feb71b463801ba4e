"""The packed linear: against the reference, and that a token's result does not depend on its batch."""

import pytest
import torch
from kernel_testkit.tolerance import check

from penstock_kernels import linear
from penstock_kernels.linear import linear_ref, prepare

SHAPES = [(1, 1), (7, 33), (960, 576), (576, 1536), (131, 240), (64, 4096)]


def weights(out_features, in_features, dtype=torch.float32):
    generator = torch.Generator().manual_seed(out_features)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    return weight.to(dtype), torch.randn(out_features, generator=generator).to(dtype)


def tokens(num_tokens, in_features, dtype=torch.float32):
    return torch.randn(num_tokens, in_features, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 9, 70])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_equals_the_reference(out_features, in_features, num_tokens, dtype):
    weight, bias = weights(out_features, in_features, dtype)
    x = tokens(num_tokens, in_features, dtype)
    for given_bias in (None, bias):
        wide = None if given_bias is None else given_bias.double()
        expected = linear_ref(x.double(), weight.double(), wide)
        check("linear", prepare(weight, given_bias)(x), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_a_token_has_the_same_bits_alone_and_in_a_batch(out_features, in_features, threads):
    if not linear.can_pack(torch.float32):
        pytest.skip("this torch has no packed linear")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = prepare(*weights(out_features, in_features))
        x = tokens(300, in_features)
        out = layer(x)
        for start, end in ((0, 1), (5, 6), (299, 300), (0, 2), (7, 40), (100, 133), (0, 257)):
            assert torch.equal(layer(x[start:end]), out[start:end]), f"tokens {start}:{end}"
    finally:
        torch.set_num_threads(before)


def test_keeps_no_reference_to_a_packed_weight():
    if not linear.can_pack(torch.float32):
        pytest.skip("this torch has no packed linear")
    weight, _ = weights(64, 64)
    layer = prepare(weight)
    expected = layer(tokens(3, 64))
    weight.fill_(torch.nan)
    assert torch.equal(layer(tokens(3, 64)), expected)


def test_without_the_private_operations_it_falls_back(monkeypatch):
    def fail(*args):
        raise AttributeError("no such operation")

    weight, bias = weights(7, 33)
    monkeypatch.setattr(linear, "_packed_linear", fail)
    linear.can_pack.cache_clear()
    try:
        assert not linear.can_pack(torch.float32)
        x = tokens(5, 33)
        check("linear", prepare(weight, bias)(x), linear_ref(x.double(), weight.double(), bias.double()))
    finally:
        linear.can_pack.cache_clear()


def test_float64_is_not_packed():
    assert not linear.can_pack(torch.float64)
    weight, bias = weights(7, 33, torch.float64)
    x = tokens(5, 33, torch.float64)
    assert torch.allclose(prepare(weight, bias)(x), linear_ref(x, weight, bias), rtol=1e-12)
