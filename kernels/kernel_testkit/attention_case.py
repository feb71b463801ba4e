"""One step's inputs of paged attention on a device, and what the reference makes of them on the CPU."""

import dataclasses

import torch

from kernel_testkit.batches import PoolShape, Rows, attention_batch, block_tables, poisoned_pool
from penstock_kernels.attention import paged_attention, paged_attention_ref, prepare
from penstock_kernels.attention_batch import AttentionBatch

DEFAULT_SHAPE = PoolShape()
DECODE = Rows([(1, 1), (16, 1), (17, 1), (63, 1), (64, 1), (65, 1), (200, 1), (129, 1)])
PROMPTS = Rows([(1, 1), (40, 1), (5, 5), (128, 127), (140, 129), (70, 2), (20, 3)])
PADDED = Rows([(33, 1), (0, 1), (90, 1), (0, 1), (20, 7), (0, 3)], padded_tokens=5)
# As a step is built that can be replayed with another mix of rows: those that are not there have no token.
ANY_MIX = Rows([*PROMPTS.lens, *[(0, 0)] * 9], padded_tokens=21, max_prompt_rows=7)
ANY_MIX_OF_ONE_KIND = Rows([*DECODE.lens, *[(0, 0)] * 3], padded_tokens=4, max_prompt_rows=3)
CPU = torch.device("cpu")


class Case:
    """A step's inputs, in `dtype` on `device`; the reference computes from the same values in float64."""

    def __init__(
        self,
        rows: Rows,
        shape: PoolShape = DEFAULT_SHAPE,
        num_heads: int = 6,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows, self.shape, self.dtype, self.device = rows, shape, dtype, device
        self.scale = 0.2
        table = block_tables([seq_len for seq_len, _ in rows.lens], shape.tokens_per_block, generator)
        self.host_batch = attention_batch(rows, table, shape.tokens_per_block)
        self.keys = poisoned_pool(rows, table, shape, dtype, generator).to(device)
        self.values = poisoned_pool(rows, table, shape, dtype, generator).to(device)
        num_tokens = self.host_batch.slot_mapping.shape[0]
        self.query = torch.randn(num_tokens, num_heads, shape.head_dim, generator=generator).to(device, dtype)
        self.batch = on_device(self.host_batch, device)
        self.table = self.batch.block_table

    def run(self, window: int = 0, softcap: float = 0.0) -> torch.Tensor:
        """What `paged_attention` makes of them."""
        prepared = prepare(self.batch, self.shape.tokens_per_block, self.dtype, window)
        return paged_attention(self.query, self.keys, self.values, prepared, self.scale, softcap)

    def reference(self, window: int = 0, softcap: float = 0.0) -> torch.Tensor:
        """In float64, on the CPU."""
        query, keys, values = (tensor.cpu().double() for tensor in (self.query, self.keys, self.values))
        return paged_attention_ref(query, keys, values, self.host_batch, self.scale, (window, softcap))

    def tokens(self, row: int) -> slice:
        """The tokens of a row in the step."""
        start, end = self.host_batch.query_starts[row : row + 2].tolist()
        return slice(start, end)

    def alone(self, row: int, window: int = 0) -> torch.Tensor:
        """The same row as the only one of a step."""
        table = self.host_batch.block_table[row : row + 1]
        batch = attention_batch(Rows([self.rows.lens[row]]), table, self.shape.tokens_per_block)
        prepared = prepare(on_device(batch, self.device), self.shape.tokens_per_block, self.dtype, window)
        return paged_attention(self.query[self.tokens(row)], self.keys, self.values, prepared, self.scale)


def on_device(batch: AttentionBatch, device: torch.device) -> AttentionBatch:
    """The same step with its tensors on `device`."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    moved = {name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **moved)
