"""Compiles the attention kernels for a Hopper, with none at hand: they fit its registers and shared memory."""

import re

import pytest
import torch

from penstock_kernels.attention_config import Device, PromptConfig, decode_config, prompt_config

pytest.importorskip("triton")

from kernel_testkit.hopper import SHARED_BYTES, compile_kernel

HOPPER = Device(capability=9, num_sms=132)
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


def compile_for_hopper(kernel, constants, config, capsys):
    """Prints the kernel's registers; fails where some of them spill or it needs too much shared memory."""
    types = {name: TYPES.get(name, "i32") for name in kernel.arg_names if name not in constants}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = compile_kernel(kernel, types, constants, ALIGNED, options)
    with capsys.disabled():
        shared_kb = compiled.shared_bytes >> 10
        print(f"\n{kernel.__name__}: {compiled.registers} registers, {shared_kb} KB shared", end=" ")
    assert not compiled.spilled_bytes
    assert compiled.shared_bytes <= SHARED_BYTES
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
def test_decode(shape, capsys):
    from penstock_kernels.attention_decode_kernel import decode_kernel
    from penstock_kernels.attention_triton import HeadShape

    heads = HeadShape(8, shape[0], shape[1], torch.bfloat16)
    config = decode_config(heads.padded_dim, torch.bfloat16, HOPPER)
    sizes = {"ROWS": heads.decode_rows, "BLOCK_KEYS": config.block_keys}
    compiled = compile_for_hopper(decode_kernel, constants(shape) | sizes, config, capsys)
    # Two programs of an SM fit, and keys and values of a tile are on their way while those before it are used.
    assert compiled.shared_bytes * config.programs_per_sm <= SHARED_BYTES
    assert max(map(int, re.findall(r"async_wait .*num = (\d+)", compiled.asm["ttgir"]))) >= 2


@SHAPES
def test_prompt(shape, capsys):
    from penstock_kernels.attention_prompt_kernel import prompt_kernel
    from penstock_kernels.attention_triton import HeadShape

    heads = HeadShape(8, shape[0], shape[1], torch.bfloat16)
    config = prompt_config(heads.padded_dim, torch.bfloat16, HOPPER)
    sizes = {"HEADS": heads.prompt_heads(config), "BLOCK_ROWS": config.block_rows, "BLOCK_KEYS": config.block_keys}
    compiled = compile_for_hopper(prompt_kernel, constants(shape) | sizes, config, capsys)
    assert "wgmma.mma_async" in compiled.asm["ptx"]


def test_plan(capsys, tmp_path):
    from penstock_kernels.attention_plan_kernel import plan_kernel

    config = PromptConfig(block_rows=128, block_keys=64, num_warps=4, num_stages=3)
    sizes = {"WINDOW": 0, "BLOCK_KEYS": 64, "TILE_TOKENS": 32, "HEAD_BLOCKS": 8}
    compile_for_hopper(plan_kernel, sizes, config, capsys)
