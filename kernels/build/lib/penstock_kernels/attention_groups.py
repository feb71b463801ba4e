"""Which rows of a step attend together, and where their keys lie: worked out once per step, used by every layer.

Shapes: R rows, N rows of a group, L keys of a group, Q queries of a tile. Reads the host's copy of the lengths only,
so it never waits for a device. Knows nothing of heads.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.attention_batch import AttentionBatch

# Rows of up to this many keys form one group: padding them costs less than a group of their own.
_MIN_GROUP_KEYS = 64
# Queries of a prompt chunk that share one mask. Smaller tiles skip more keys that nobody sees, larger ones run faster.
TILE_QUERIES = 128


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one token each whose keys are padded to the same number L."""

    rows: slice | torch.Tensor  # which of the step's rows (and tokens): a slice, or int64 [N]
    num_rows: int
    slots: torch.Tensor  # int64 [N * L], where each key lies in the pool
    mask: torch.Tensor  # [N, 1, 1, L], 0 where the row has a key, -inf where it has none
    gathered: "Gathered"


@dataclass(frozen=True, slots=True)
class PromptTile:
    """Neighbouring tokens of a prompt row."""

    queries: slice  # in the row's tokens
    keys: slice  # in the row's slots
    mask: torch.Tensor  # [Q, keys], 0 or -inf


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row that feeds tokens of a prompt."""

    tokens: slice  # in the step
    slots: torch.Tensor  # int64 [L], the keys that any of its tokens sees
    tiles: tuple[PromptTile, ...]
    gathered: "Gathered"


class Gathered:
    """Where all layers of a step gather one group's keys and values, one layer after the other.

    The same memory for every layer: fresh memory of tens of megabytes would be mapped and unmapped by each of them.
    """

    def __init__(self) -> None:
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def fill(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `slots` (int64 [L]) of `keys` and `values` [S, C], both [L, C]; valid until the next call."""
        if self._buffers is None:
            self._buffers = keys.index_select(0, slots), values.index_select(0, slots)
            return self._buffers
        torch.index_select(keys, 0, slots, out=self._buffers[0])
        torch.index_select(values, 0, slots, out=self._buffers[1])
        return self._buffers


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """One step's rows, grouped."""

    decode: tuple[DecodeGroup, ...]
    prompts: tuple[PromptRow, ...]
    covers_all: bool  # every token of the step is in a group or a row: none is padding


@dataclass(frozen=True, slots=True)
class _Layout:
    """What all rows share."""

    tokens_per_block: int
    dtype: torch.dtype
    window: int
    device: torch.device


def group_rows(batch: AttentionBatch, tokens_per_block: int, dtype: torch.dtype, window: int = 0) -> GroupedRows:
    """Groups a step's rows for layers with this window: a token sees that many last keys, itself included; 0: all.

    `dtype` is that of the queries (masks are made in it).
    """
    layout = _Layout(tokens_per_block, dtype, window, batch.block_table.device)
    seq_lens, query_lens = batch.host_seq_lens.astype(np.int64), batch.host_query_lens.astype(np.int64)
    decode = _decode_groups(batch, seq_lens[: batch.num_decode_rows], layout)
    prompts, start = [], batch.num_decode_rows
    for row in range(batch.num_decode_rows, seq_lens.size):
        end = start + int(query_lens[row])
        if seq_lens[row] > 0 and end > start:
            prompts.append(_prompt_row(batch.block_table[row], int(seq_lens[row]), slice(start, end), layout))
        start = end
    covered = sum(group.num_rows for group in decode) + sum(row.tokens.stop - row.tokens.start for row in prompts)
    return GroupedRows(tuple(decode), tuple(prompts), covered == batch.slot_mapping.shape[0])


def _decode_groups(batch: AttentionBatch, seq_lens: NDArray[np.int64], layout: _Layout) -> list[DecodeGroup]:
    counts = np.minimum(seq_lens, layout.window) if layout.window else seq_lens
    blocks = np.maximum(-(-counts // layout.tokens_per_block), 1)
    # frexp(x - 1/2) gives the exponent of the power of two at or above x, exactly, for any x >= 1.
    padded = np.maximum(
        np.ldexp(1.0, np.frexp(blocks - 0.5)[1]).astype(np.int64) * layout.tokens_per_block, _MIN_GROUP_KEYS
    )
    rows = np.flatnonzero(counts > 0)
    if not rows.size:
        return []
    rows = rows[np.argsort(padded[rows], kind="stable")]
    lengths, starts = np.unique(padded[rows], return_index=True)
    groups = []
    for length, group in zip(lengths, np.split(rows, starts[1:]), strict=True):
        position = np.arange(length)
        count = counts[group, None]
        # A padded key is an alias of the first key that the row sees: finite whenever the row itself is.
        positions = np.where(position < count, position, 0) + (seq_lens[group, None] - count)
        has_key = torch.from_numpy(position < count).to(layout.device)
        index = torch.from_numpy(group).to(layout.device)
        table = batch.block_table.index_select(0, index)
        is_range = group[-1] - group[0] + 1 == group.size
        members = slice(int(group[0]), int(group[-1]) + 1) if is_range else index
        mask = torch.zeros(has_key.shape, dtype=layout.dtype, device=layout.device)
        mask.masked_fill_(~has_key, float("-inf"))
        slots = _slots(table, torch.from_numpy(positions).to(layout.device), layout.tokens_per_block)
        groups.append(DecodeGroup(members, group.size, slots.flatten(), mask[:, None, None, :], Gathered()))
    return groups


def _slots(table: torch.Tensor, positions: torch.Tensor, tokens_per_block: int) -> torch.Tensor:
    """int64 [N, L]: slots of `positions` [N, L] of the rows whose block tables are `table` [N, B]."""
    blocks = table.gather(1, positions // tokens_per_block).to(torch.int64)
    return blocks.mul_(tokens_per_block).add_(positions % tokens_per_block)


def _prompt_row(table: torch.Tensor, seq_len: int, tokens: slice, layout: _Layout) -> PromptRow:
    num_queries = tokens.stop - tokens.start
    first_position = seq_len - num_queries
    first_key = max(0, first_position - layout.window + 1) if layout.window else 0
    positions = torch.arange(first_key, seq_len, device=layout.device)
    slots = _slots(table[None, :], positions[None, :], layout.tokens_per_block).flatten()
    strip_keys = 1 << max(9, (seq_len - 1).bit_length())
    strip = _mask_strip(strip_keys, layout.window, layout.dtype, layout.device)
    tiles = []
    for start in range(0, num_queries, TILE_QUERIES):
        end = min(start + TILE_QUERIES, num_queries)
        begin_key = max(0, first_position + start - layout.window + 1) if layout.window else 0
        end_key = first_position + end
        mask = strip[TILE_QUERIES - (end - start) :, strip_keys - (end_key - begin_key) :]
        if layout.device.type != "cpu":
            mask = mask.contiguous()  # torch's kernel on CUDA reads it in aligned vectors, and does not check
        tiles.append(PromptTile(slice(start, end), slice(begin_key - first_key, end_key - first_key), mask))
    return PromptRow(tokens, slots, tuple(tiles), Gathered())


@functools.lru_cache(maxsize=4)
def _mask_strip(num_keys: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[TILE_QUERIES, num_keys]: the mask of a full tile whose last query is the last key.

    The mask of any tile is a view of it, the bottom right corner: what a query sees depends only on how far behind it a
    key lies.
    """
    behind_last = torch.arange(num_keys - 1, -1, -1, device=device)[None, :]
    distance = behind_last - torch.arange(TILE_QUERIES - 1, -1, -1, device=device)[:, None]
    hidden = distance < 0
    if window:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
