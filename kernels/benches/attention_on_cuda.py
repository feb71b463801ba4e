"""Paged attention with the heads of Llama 3.1 8B in bfloat16 on a CUDA device: against its limits and torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cuda_timing import copy_bandwidth, matmul_flops, seconds_each
from harness import emit
from kernel_testkit.attention_case import on_device
from kernel_testkit.batches import PoolShape, Rows, attention_batch, block_tables
from torch.nn.functional import scaled_dot_product_attention

from penstock_kernels.attention import paged_attention, prepare

SHAPE = PoolShape(num_kv_heads=8, head_dim=128)
HEADS = 32
SCALE = SHAPE.head_dim**-0.5
DTYPE = torch.bfloat16
DEVICE = torch.device("cuda")
KEY_BYTES = 2 * SHAPE.num_kv_heads * SHAPE.head_dim * DTYPE.itemsize  # a token's key and value
# Inputs of all calls of a timing together: several times what caches hold.
ROTATED_BYTES = 256 << 20
DECODE_CASES = {f"decode {rows} rows of 1024": Rows([(1024, 1)] * rows) for rows in (1, 8, 32, 128, 256)}
PROMPT_CASES = {f"prompt of {count}": Rows([(count, count)]) for count in (1024, 8192)}


@dataclass(frozen=True)
class Work:
    """One case: calls of ours and of torch over the same pool, and the least that any of them could take."""

    name: str
    ours: list[Callable[[], object]]
    preparing: list[Callable[[], object]]
    torch: list[Callable[[], object]]
    floor: tuple[str, float]  # its name, in seconds


def make_work(name: str, rows: Rows) -> Work:
    """Copies of a step over blocks in random order, more than caches hold. Torch finds the same keys in order."""
    num_rows, keys = len(rows.lens), rows.lens[0][0]
    copies = min(64, max(2, ROTATED_BYTES // (num_rows * keys * KEY_BYTES)))
    table = block_tables([keys] * num_rows * copies, SHAPE.tokens_per_block, torch.Generator().manual_seed(0))
    size = (table.numel() + 1, SHAPE.tokens_per_block, SHAPE.num_kv_heads, SHAPE.head_dim)
    pools = [torch.randn(size, dtype=DTYPE, device=DEVICE) for _ in range(2)]
    tokens = sum(count for _, count in rows.lens)
    query = torch.randn(tokens, HEADS, SHAPE.head_dim, dtype=DTYPE, device=DEVICE)
    query_by_head = query.view(num_rows, -1, HEADS, SHAPE.head_dim).transpose(1, 2)
    in_order = [pool[1:].view(copies, num_rows, keys, *size[2:]).transpose(2, 3) for pool in pools]
    attend_in_order = functools.partial(
        scaled_dot_product_attention, query_by_head, is_causal=tokens > num_rows, scale=SCALE, enable_gqa=True
    )
    batches = [on_device(attention_batch(rows, part, SHAPE.tokens_per_block), DEVICE) for part in table.chunk(copies)]
    prepared = [prepare(batch, SHAPE.tokens_per_block, DTYPE) for batch in batches]
    return Work(
        name=name,
        ours=[functools.partial(paged_attention, query, *pools, each, SCALE) for each in prepared],
        preparing=[functools.partial(_first_layer, query, pools, batch) for batch in batches],
        torch=[functools.partial(attend_in_order, *(x[index] for x in in_order)) for index in range(copies)],
        floor=_floor(rows, query),
    )


def _first_layer(query: torch.Tensor, pools: list[torch.Tensor], batch: object) -> torch.Tensor:
    return paged_attention(query, *pools, prepare(batch, SHAPE.tokens_per_block, DTYPE), SCALE)


def _floor(rows: Rows, query: torch.Tensor) -> tuple[str, float]:
    keys = sum(seq_len for seq_len, _ in rows.lens)
    seen = sum(count * (2 * seq_len - count + 1) // 2 for seq_len, count in rows.lens)
    memory = (keys * KEY_BYTES + 2 * query.nbytes) / copy_bandwidth()
    arithmetic = 4 * seen * HEADS * SHAPE.head_dim / matmul_flops()
    return max(("copy bandwidth", memory), ("matmul rate", arithmetic), key=lambda floor: floor[1])


def run() -> None:
    """Three lines a case: against the floor, against torch, and what the step's first layer takes in addition."""
    for name, rows in (DECODE_CASES | PROMPT_CASES).items():
        work = make_work(name, rows)
        ours = seconds_each(work.ours)
        case = f"{name}, 32/8 heads of 128, bf16"
        emit("attention", case, (ours * 1e6, "us"), (work.floor[0], work.floor[1] * 1e6))
        emit("attention", case, (ours * 1e6, "us"), ("torch SDPA, keys in order", seconds_each(work.torch) * 1e6))
        first = seconds_each(work.preparing)
        emit("attention of a first layer", case, (first * 1e6, "us"), ("of another", ours * 1e6))
