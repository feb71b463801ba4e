"""Every Triton kernel compiles for a Hopper GPU in bfloat16 without spilling registers. Needs no GPU."""

import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from penstock_kernels import embedding_triton, rms_norm_triton, rotary_kv_store_triton, silu_mul_triton  # noqa: E402

TARGET = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel, types, constants, num_warps):
    """Compiles a kernel whose parameters have these types (Triton's names; pointers are aligned), then constants."""
    names = kernel.arg_names
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    assert list(signature) == names
    attributes = {(index,): [["tt.divisibility", 16]] for index, kind in enumerate(types) if kind.startswith("*")}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=TARGET, options={"num_warps": num_warps})


def stack_bytes(compiled, folder):
    """Bytes of stack of each function: where registers that do not fit are spilled to."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    words = [word.split(":") for line in usage.splitlines() if "REG:" in line for word in line.split() if ":" in word]
    found = [int(value) for key, value in words if key in ("STACK", "LOCAL")]
    assert found, usage
    return found


@pytest.mark.parametrize("channels", [576, 4096, 8192])
@pytest.mark.parametrize("adds", [False, True])
def test_rms_norm(channels, adds, tmp_path):
    constants = {"channels": channels, "adds": adds, "block": triton.next_power_of_2(channels)}
    compiled = compile_kernel(
        rms_norm_triton._rms_norm_kernel, ["*bf16"] * 4 + ["fp32"], constants, rms_norm_triton.num_warps(channels)
    )
    assert set(stack_bytes(compiled, tmp_path)) == {0}


@pytest.mark.parametrize("size", [1536, 14336])
def test_silu_mul(size, tmp_path):
    compiled = compile_kernel(silu_mul_triton._silu_mul_kernel, ["*bf16"] * 2, {"size": size, "block": 1024}, 4)
    assert set(stack_bytes(compiled, tmp_path)) == {0}


def test_embedding(tmp_path):
    constants = {"first_id": 0, "num_rows": 128256, "channels": 4096, "block": 1024}
    compiled = compile_kernel(embedding_triton._embedding_kernel, ["*i64", "*bf16", "*bf16"], constants, 4)
    assert set(stack_bytes(compiled, tmp_path)) == {0}


@pytest.mark.parametrize(("heads", "head_dim"), [((32, 8), 128), ((9, 3), 64), ((6, 2), 40)])
def test_rotary_kv_store(heads, head_dim, tmp_path):
    constants = {
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "head_dim": head_dim,
        "heads": rotary_kv_store_triton._HEADS,
        "block": triton.next_power_of_2(head_dim // 2),
    }
    compiled = compile_kernel(rotary_kv_store_triton._rotary_kv_store_kernel, ["*bf16"] * 6 + ["*i64"], constants, 1)
    assert set(stack_bytes(compiled, tmp_path)) == {0}


def test_the_stack_of_a_kernel_that_spills_is_seen(tmp_path):
    """A row that is far too large for the registers of one warp."""
    constants = {"channels": 32768, "adds": True, "block": 32768}
    compiled = compile_kernel(rms_norm_triton._rms_norm_kernel, ["*bf16"] * 4 + ["fp32"], constants, 1)
    assert max(stack_bytes(compiled, tmp_path)) > 0
