"""Runs a model over a paged cache without an engine: sequences are fed in any pieces, alone or together."""

from dataclasses import dataclass, replace

import torch
from kernel_testkit.batches import Rows, attention_batch

from penstock_kernels.attention_batch import AttentionBatch
from penstock_server.batch import ForwardBatch
from penstock_server.kv_cache import KvCache, allocate
from penstock_server.models.base import Model

TOKENS_PER_BLOCK = 16
CPU = torch.device("cpu")


@dataclass
class Sequence:
    """Token ids, the blocks that hold their keys, and how many of them have been fed."""

    ids: list[int]
    blocks: torch.Tensor  # int32
    fed: int = 0


class PagedModel:
    """A model and a pool that starts as NaN, block 0 included."""

    def __init__(self, model: Model, num_blocks: int = 64, seed: int = 0, device: torch.device = CPU) -> None:
        """`device`: that of the model. What a test sees is on the CPU."""
        self._model = model
        self._device = device
        self.kv: KvCache = allocate(model.kv_spec, num_blocks, TOKENS_PER_BLOCK, device)
        self.kv.fill(float("nan"))
        order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(seed)) + 1
        self._free = order.to(torch.int32)

    def sequence(self, ids: list[int]) -> Sequence:
        """A sequence with blocks of its own for all of its ids."""
        count = -(-len(ids) // TOKENS_PER_BLOCK)
        assert count <= self._free.numel(), "the pool is too small"
        blocks, self._free = self._free[:count], self._free[count:]
        return Sequence(ids, blocks)

    def step(self, pieces: list[tuple[Sequence, int]], padded_tokens: int = 0) -> list[torch.Tensor]:
        """Feeds each sequence's next `count` tokens in one step; for each, its logits [count, V]."""
        order = sorted(range(len(pieces)), key=lambda index: pieces[index][1] > 1)
        ordered = [pieces[index] for index in order]
        rows = Rows([(sequence.fed + count, count) for sequence, count in ordered], padded_tokens)
        ids: list[int] = []
        positions: list[int] = []
        for sequence, count in ordered:
            ids += sequence.ids[sequence.fed : sequence.fed + count]
            positions += range(sequence.fed, sequence.fed + count)
            sequence.fed += count
        num_tokens = len(ids)
        batch = ForwardBatch(
            token_ids=torch.tensor(ids + [0] * padded_tokens, device=self._device),
            positions=torch.tensor(positions + [0] * padded_tokens, device=self._device),
            attention=self._attention(rows, [sequence for sequence, _ in ordered]),
        )
        with torch.no_grad():
            hidden = self._model.forward(batch, self.kv)
            logits = self._model.logits(hidden[:num_tokens]).cpu()
        parts = logits.split([count for _, count in ordered])
        return [parts[order.index(index)] for index in range(len(pieces))]

    def _attention(self, rows: Rows, sequences: list[Sequence]) -> AttentionBatch:
        batch = attention_batch(rows, _table(sequences), TOKENS_PER_BLOCK)
        return replace(
            batch,
            slot_mapping=batch.slot_mapping.to(self._device),
            block_table=batch.block_table.to(self._device),
            seq_lens=batch.seq_lens.to(self._device),
            query_starts=batch.query_starts.to(self._device),
        )

    def run(self, ids: list[int], pieces: list[int]) -> torch.Tensor:
        """Logits [N, V] of a new sequence fed in `pieces`, and one token at a time after the last of them."""
        sequence = self.sequence(ids)
        pieces = pieces + [1] * (len(ids) - sum(pieces))
        return torch.cat([self.step([(sequence, count)])[0] for count in pieces])


def _table(sequences: list[Sequence]) -> torch.Tensor:
    width = max(sequence.blocks.numel() for sequence in sequences)
    table = torch.zeros(len(sequences), width, dtype=torch.int32)
    for row, sequence in enumerate(sequences):
        table[row, : sequence.blocks.numel()] = sequence.blocks
    return table
