"""Compiles the attention kernels for a Hopper, with none at hand: they fit its registers and shared memory."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from penstock_kernels.attention_config import Device, PromptConfig, decode_config, prompt_config

triton = pytest.importorskip("triton")

SHARED_BYTES = 227 << 10
HOPPER = Device(capability=9, num_sms=132)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Heads of a group, head size, window: Llama 3.1 8B, Qwen 2 0.5B, Gemma 2 (its logits are capped as well), multi-query.
LLAMA, QWEN, GEMMA, MULTI_QUERY = (4, 128, 0), (7, 64, 0), (2, 256, 4096), (71, 64, 0)
SHAPES = pytest.mark.parametrize("shape", [LLAMA, QWEN, GEMMA, MULTI_QUERY], ids=["llama", "qwen", "gemma", "mqa"])
TYPES = {
    **dict.fromkeys(("query", "k_cache", "v_cache", "out"), "*bf16"),
    **dict.fromkeys(("part_out", "part_stats"), "*fp32"),
    **dict.fromkeys(("block_table", "seq_lens", "query_starts"), "*i32"),
    **dict.fromkeys(("decode_items", "prompt_items", "totals", "counters"), "*i32"),
    **dict.fromkeys(("multiplier", "inner"), "fp32"),
}
# What allocators and models make is aligned to 16 bytes; views of a step's columns may not be.
ALIGNED = {"query", "k_cache", "v_cache", "out", "part_out", "part_stats", "query_stride"}


def compile_for_hopper(kernel, constants, config, capsys, tmp_path):
    """Prints the kernel's registers; fails where some of them spill or it needs too much shared memory."""
    from triton.backends.compiler import GPUTarget

    names = list(enumerate(kernel.arg_names))
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for _, name in names}
    attributes = {(index,): [["tt.divisibility", 16]] for index, name in names if name in ALIGNED}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    with capsys.disabled():
        print(f"\n{kernel.__name__}: {registers} registers, {compiled.metadata.shared >> 10} KB shared", end=" ")
    assert stack == 0, usage
    assert compiled.metadata.shared <= SHARED_BYTES
    return compiled


def constants(shape):
    group, head_dim, window = shape
    return {
        "KV_HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "PAGE": 16,
        "WINDOW": window,
        "SOFTCAP": window > 0,
        "DIM": head_dim,
    }


@SHAPES
def test_decode(shape, capsys, tmp_path):
    from penstock_kernels.attention_decode_kernel import decode_kernel
    from penstock_kernels.attention_triton import HeadShape

    heads = HeadShape(8, shape[0], shape[1], torch.bfloat16)
    config = decode_config(heads.padded_dim, torch.bfloat16, HOPPER)
    sizes = {"ROWS": heads.decode_rows, "BLOCK_KEYS": config.block_keys}
    compiled = compile_for_hopper(decode_kernel, constants(shape) | sizes, config, capsys, tmp_path)
    # Two programs of an SM fit, and keys and values of a tile are on their way while those before it are used.
    assert compiled.metadata.shared * config.programs_per_sm <= SHARED_BYTES
    assert max(map(int, re.findall(r"async_wait .*num = (\d+)", compiled.asm["ttgir"]))) >= 2


@SHAPES
def test_prompt(shape, capsys, tmp_path):
    from penstock_kernels.attention_prompt_kernel import prompt_kernel
    from penstock_kernels.attention_triton import HeadShape

    heads = HeadShape(8, shape[0], shape[1], torch.bfloat16)
    config = prompt_config(heads.padded_dim, torch.bfloat16, HOPPER)
    sizes = {"HEADS": heads.prompt_heads(config), "BLOCK_ROWS": config.block_rows, "BLOCK_KEYS": config.block_keys}
    compiled = compile_for_hopper(prompt_kernel, constants(shape) | sizes, config, capsys, tmp_path)
    assert "wgmma.mma_async" in compiled.asm["ptx"]


def test_plan(capsys, tmp_path):
    from penstock_kernels.attention_plan_kernel import plan_kernel

    config = PromptConfig(block_rows=128, block_keys=64, num_warps=4, num_stages=3)
    sizes = {"WINDOW": 0, "BLOCK_KEYS": 64, "TILE_TOKENS": 32, "HEAD_BLOCKS": 8}
    compile_for_hopper(plan_kernel, sizes, config, capsys, tmp_path)
