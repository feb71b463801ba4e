"""Steps over a paged pool whose every unused slot is NaN, block 0 included."""

from dataclasses import dataclass

import numpy as np
import torch

from penstock_kernels.attention_batch import AttentionBatch


@dataclass(frozen=True)
class PoolShape:
    """`num_kv_heads` heads of `head_dim` elements."""

    num_kv_heads: int = 2
    head_dim: int = 40
    tokens_per_block: int = 16


@dataclass(frozen=True)
class Rows:
    """Rows of a step as (keys, tokens) pairs, those of one token first; (0, n) is a padded row of n tokens."""

    lens: list[tuple[int, int]]
    padded_tokens: int = 0  # after the last row
    max_prompt_rows: int | None = None


def block_tables(lens: list[int], tokens_per_block: int, generator: torch.Generator) -> torch.Tensor:
    """int32 [rows, blocks of the longest]: distinct blocks in random order, none of them 0; 0 where a row has none."""
    counts = [-(-length // tokens_per_block) for length in lens]
    order = torch.randperm(sum(counts), generator=generator, dtype=torch.int32) + 1
    table = torch.zeros(len(lens), max(1, *counts) if counts else 1, dtype=torch.int32)
    start = 0
    for row, count in enumerate(counts):
        table[row, :count] = order[start : start + count]
        start += count
    return table


def attention_batch(rows: Rows, table: torch.Tensor, tokens_per_block: int) -> AttentionBatch:
    """The step in which each row's tokens are its last ones."""
    slots = []
    for row, (seq_len, query_len) in enumerate(rows.lens):
        for position in range(seq_len - query_len, seq_len):
            block = int(table[row, position // tokens_per_block]) if seq_len else 0
            slots.append(block * tokens_per_block + position % tokens_per_block)
    slots += [index % tokens_per_block for index in range(rows.padded_tokens)]
    query_lens = np.array([query_len for _, query_len in rows.lens], np.int32)
    seq_lens = np.array([seq_len for seq_len, _ in rows.lens], np.int32)
    single = query_lens == 1
    num_decode_rows = int(single.argmin()) if not single.all() else single.size
    return AttentionBatch(
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        block_table=table,
        seq_lens=torch.from_numpy(seq_lens.copy()),
        query_starts=torch.from_numpy(np.concatenate(([0], np.cumsum(query_lens))).astype(np.int32)),
        decode_rows=torch.tensor([num_decode_rows], dtype=torch.int32),
        max_prompt_rows=rows.max_prompt_rows,
        num_decode_rows=num_decode_rows,
        host_seq_lens=seq_lens,
        host_query_lens=query_lens,
    )


def poisoned_pool(
    rows: Rows, table: torch.Tensor, shape: PoolShape, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """[blocks, tokens per block, K, D]: random where a row has a key, NaN everywhere else."""
    num_blocks = int(table.max()) + 2
    size = (num_blocks, shape.tokens_per_block, shape.num_kv_heads, shape.head_dim)
    pool = torch.full(size, torch.nan, dtype=dtype)
    for row, (seq_len, _) in enumerate(rows.lens):
        for position in range(seq_len):
            key = torch.randn(shape.num_kv_heads, shape.head_dim, generator=generator)
            block = table[row, position // shape.tokens_per_block]
            pool[block, position % shape.tokens_per_block] = key.to(dtype)
    return pool
