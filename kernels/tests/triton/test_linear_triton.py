"""The Triton product for few tokens against the reference."""

import pytest
import torch
from kernel_testkit.tolerance import check
from kernel_testkit.triton_device import BFLOAT16, DEVICE, GPU_TESTS

from penstock_kernels.linear import linear_ref
from penstock_kernels.linear_triton import SkinnyConfig, skinny_config, skinny_linear

pytestmark = GPU_TESTS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
WHOLE = SkinnyConfig(block_out=64, block_in=64, splits=1, num_warps=4, num_stages=3, max_tokens=64)
CUT = SkinnyConfig(block_out=32, block_in=64, splits=4, num_warps=4, num_stages=3, max_tokens=64)
# As production has them, cut into pieces: the tensor core's sums are 64 outputs wide only here.
USED = SkinnyConfig(block_out=64, block_in=128, splits=2, num_warps=4, num_stages=4, max_tokens=64)
# The last tile of 100 outputs is not a whole one.
SHAPES = [(256, 512, WHOLE), (256, 512, CUT), (100, 256, WHOLE), (100, 256, CUT), (256, 512, USED)]


def inputs(shape, num_tokens, dtype):
    """A weight within poison: what lies behind it must not be read into a result, nor anything be written there."""
    out_features, in_features = shape
    generator = torch.Generator().manual_seed(num_tokens)
    weight = torch.full((out_features + 64, in_features), torch.nan)
    weight[:out_features] = torch.randn(shape, generator=generator) * in_features**-0.5
    x = torch.randn(num_tokens, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype)[:out_features], bias.to(DEVICE, dtype)


@DTYPES
@pytest.mark.parametrize("num_tokens", [1, 5, 17, 64])
@pytest.mark.parametrize(("out_features", "in_features", "tiles"), SHAPES)
def test_equals_the_reference(out_features, in_features, tiles, num_tokens, dtype):
    x, weight, bias = inputs((out_features, in_features), num_tokens, dtype)
    for _ in range(2):  # the second finds the counters as the first has left them
        for given in (None, bias):
            expected = linear_ref(x.double(), weight.double(), None if given is None else given.double())
            check("linear", skinny_linear(x, weight, given, tiles), expected)


@DTYPES
def test_whole_numbers_are_exact(dtype):
    """Sums of small whole numbers have no rounding, so one wrong product among thousands shows."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-2, 3, (33, 512), generator=generator).to(DEVICE, dtype)
    weight = torch.randint(-1, 2, (96, 512), generator=generator).to(DEVICE, dtype)
    expected = x.double() @ weight.double().T
    assert torch.equal(skinny_linear(x, weight, None, CUT).double(), expected)


@DTYPES
@pytest.mark.parametrize("tiles", [WHOLE, CUT], ids=["whole", "cut"])
def test_a_token_has_the_same_bits_in_every_batch(tiles, dtype):
    x, weight, _ = inputs((256, 512), 64, dtype)
    out = skinny_linear(x, weight, None, tiles)
    for start, end in ((0, 1), (63, 64), (3, 20), (0, 40)):
        assert torch.equal(skinny_linear(x[start:end], weight, None, tiles), out[start:end])


@DTYPES
def test_a_nan_token_changes_no_other(dtype):
    x, weight, _ = inputs((256, 512), 20, dtype)
    expected = skinny_linear(x, weight, None, CUT)
    x[3] = torch.nan
    out = skinny_linear(x, weight, None, CUT)
    assert torch.isnan(out[3]).all()
    others = [token for token in range(20) if token != 3]
    assert torch.equal(out[others], expected[others])


@DTYPES
@pytest.mark.parametrize("num_tokens", [1, 17])
@pytest.mark.parametrize(("out_features", "in_features", "tiles"), SHAPES)
def test_silu_mul(out_features, in_features, tiles, num_tokens, dtype):
    x, weight, bias = inputs((out_features, in_features), num_tokens, dtype)
    gate_up = linear_ref(x.double(), weight.double(), bias.double())
    gate, up = gate_up.chunk(2, dim=1)
    check("linear_silu_mul", skinny_linear(x, weight, bias, tiles, silu_mul=True), gate * torch.sigmoid(gate) * up)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 17, 32])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 4096), (4096, 14336)], ids=str)
def test_products_of_one_shape_follow_each_other_in_a_graph(shape, num_tokens):
    """Two weights that share a workspace, without a pause, in replay after replay, at the sizes that are served."""
    tiles = skinny_config(*shape)
    (x, first, _), (_, second, _) = (inputs(shape, tokens, torch.bfloat16) for tokens in (num_tokens, num_tokens + 1))
    weights = [first, second] * 4
    expected = [x.double().cpu() @ weight.double().cpu().T for weight in (first, second)]
    skinny_linear(x, first, None, tiles)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [skinny_linear(x, weight, None, tiles) for weight in weights]
    graph.replay()
    seen = [out.clone() for out in outs]
    for out, wanted in zip(seen, expected * 4, strict=True):
        check("linear", out, wanted)
    for _ in range(100):
        graph.replay()
    assert all(torch.equal(out, before) for out, before in zip(outs, seen, strict=True))


def test_weights_are_cut_into_whole_tiles():
    shapes = (
        (6144, 4096),
        (4096, 4096),
        (28672, 4096),
        (4096, 14336),
        (128256, 4096),
        (960, 576),
        (64, 128),
        (64, 100),
    )
    for shape in shapes:
        tiles = skinny_config(*shape)
        assert tiles is None or shape[1] % (tiles.splits * tiles.block_in) == 0, shape
    assert skinny_config(4096, 14336) is not None
    assert skinny_config(64, 100) is None
