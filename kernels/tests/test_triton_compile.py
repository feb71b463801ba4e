"""Every Triton kernel compiles for a Hopper GPU in bfloat16 without spilling registers. Needs no GPU."""

import pytest

triton = pytest.importorskip("triton")

from kernel_testkit.hopper import SHARED_BYTES, compile_kernel  # noqa: E402

from penstock_kernels import (  # noqa: E402
    embedding_triton,
    linear_triton,
    rms_norm_triton,
    rotary_kv_store_triton,
    silu_mul_triton,
)


def spilled_bytes(kernel, types, constants, num_warps):
    """`types`: those of the first parameters, by Triton's names; pointers are aligned. The others are constants."""
    named = dict(zip(kernel.arg_names, types, strict=False))
    aligned = {name for name, kind in named.items() if kind.startswith("*")}
    return compile_kernel(kernel, named, constants, aligned, {"num_warps": num_warps}).spilled_bytes


@pytest.mark.parametrize("channels", [576, 4096, 8192])
@pytest.mark.parametrize("adds", [False, True])
def test_rms_norm(channels, adds):
    constants = {"channels": channels, "adds": adds, "block": triton.next_power_of_2(channels)}
    types = ["*bf16"] * 4 + ["fp32"]
    assert not spilled_bytes(rms_norm_triton._rms_norm_kernel, types, constants, rms_norm_triton.num_warps(channels))


@pytest.mark.parametrize("size", [1536, 14336])
def test_silu_mul(size):
    assert not spilled_bytes(silu_mul_triton._silu_mul_kernel, ["*bf16"] * 2, {"size": size, "block": 1024}, 4)


@pytest.mark.parametrize("num_tokens", [16, 32, 64])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096)], ids=str)
def test_skinny_linear(shape, num_tokens):
    """The weights of Llama 3.1 8B; that of gates and ups with what follows it."""
    tiles = linear_triton.skinny_config(*shape)
    if num_tokens > tiles.max_tokens:
        pytest.skip("the library's product is taken")
    kernel, silu_mul = linear_triton._skinny_kernel, shape[0] == 28672
    constants = {
        "num_outs": shape[0] // (2 if silu_mul else 1),
        "in_features": shape[1],
        "has_bias": False,
        "silu_mul": silu_mul,
        "tokens": num_tokens,
        "block_out": tiles.block_out,
        "block_in": tiles.block_in,
        "splits": tiles.splits,
    }
    types = dict(zip(kernel.arg_names, ["*bf16"] * 4 + ["*fp32", "*i32", "i32"], strict=False))
    pointers = {name for name, kind in types.items() if kind.startswith("*")}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.stages(num_tokens)}
    compiled = compile_kernel(kernel, types, constants, pointers, options)
    assert not compiled.spilled_bytes
    # Two programs of an SM fit: one has loads on their way while the other begins or ends.
    assert 2 * compiled.shared_bytes <= SHARED_BYTES
    assert "wgmma.mma_async" in compiled.asm["ptx"]


def test_embedding():
    constants = {"first_id": 0, "num_rows": 128256, "channels": 4096, "block": 1024}
    assert not spilled_bytes(embedding_triton._embedding_kernel, ["*i64", "*bf16", "*bf16"], constants, 4)


@pytest.mark.parametrize(("heads", "head_dim"), [((32, 8), 128), ((9, 3), 64), ((6, 2), 40)])
def test_rotary_kv_store(heads, head_dim):
    constants = {
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "head_dim": head_dim,
        "heads": rotary_kv_store_triton._HEADS,
        "block": triton.next_power_of_2(head_dim // 2),
    }
    types = ["*bf16"] * 6 + ["*i64"]
    assert not spilled_bytes(rotary_kv_store_triton._rotary_kv_store_kernel, types, constants, 1)


def test_the_stack_of_a_kernel_that_spills_is_seen():
    """A row that is far too large for the registers of one warp."""
    constants = {"channels": 32768, "adds": True, "block": 32768}
    assert spilled_bytes(rms_norm_triton._rms_norm_kernel, ["*bf16"] * 4 + ["fp32"], constants, 1)
