"""Paged attention with 9 query and 3 key-value heads of 64: against reading each row's keys and values once.

On a CUDA device it is another model's shape and other limits: see `attention_on_cuda`.
"""

import functools
from collections.abc import Iterator
from typing import Any

import attention_on_cuda
import torch
from harness import report, rotating, set_up, shortest_seconds
from kernel_testkit.batches import PoolShape, Rows, attention_batch, block_tables

from penstock_kernels.attention import PreparedAttention, paged_attention, prepare

SHAPE = PoolShape(num_kv_heads=3, head_dim=64)
HEADS = 9
CASES = {
    **{f"decode {rows} rows of {keys}": Rows([(keys, 1)] * rows) for rows in (1, 8, 32) for keys in (160, 1000)},
    "decode 32 rows of 40 to 660": Rows([(40 + 20 * row, 1) for row in range(32)]),
    "prompt of 512": Rows([(512, 512)]),
    "prompt of 512 after 1536": Rows([(2048, 512)]),
}


def main() -> None:
    """One line per case, and one for the grouping that a step does once."""
    set_up()
    if torch.cuda.is_available():
        attention_on_cuda.run()
        return
    for name, rows in CASES.items():
        table = block_tables([keys for keys, _ in rows.lens], SHAPE.tokens_per_block, torch.Generator().manual_seed(0))
        batch = attention_batch(rows, table, SHAPE.tokens_per_block)
        size = (int(table.max()) + 1, SHAPE.tokens_per_block, SHAPE.num_kv_heads, SHAPE.head_dim)
        num_bytes = 8 * table.numel() * SHAPE.tokens_per_block * SHAPE.num_kv_heads * SHAPE.head_dim
        pools = rotating(lambda size=size: (torch.randn(size), torch.randn(size)), num_bytes)
        query = torch.randn(batch.slot_mapping.shape[0], HEADS, SHAPE.head_dim)

        group = functools.partial(prepare, batch, SHAPE.tokens_per_block, torch.float32)
        attend = functools.partial(_attend, query, pools, group())
        seen = sum(sum(range(keys - count + 1, keys + 1)) for keys, count in rows.lens)
        kv_bytes = sum(keys for keys, _ in rows.lens) * 8 * SHAPE.num_kv_heads * SHAPE.head_dim
        report("attention", name, shortest_seconds(attend), kv_bytes, 4 * seen * HEADS * SHAPE.head_dim)
        report("attention prepare", name, shortest_seconds(group, 0.2), table.nbytes)


def _attend(query: torch.Tensor, pools: Iterator[Any], prepared: PreparedAttention) -> torch.Tensor:
    keys, values = next(pools)
    return paged_attention(query, keys, values, prepared, 0.125)


if __name__ == "__main__":
    main()
