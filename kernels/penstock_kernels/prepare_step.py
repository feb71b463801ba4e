"""Finishes a step's columns with what only the device knows: last tokens, which seats are dead, and block tables.

Shapes: R padded rows, T padded tokens, N seats and one more, the pad seat, W entries of a seat's block table. A dead
seat's alias is the pad seat, whose table is all zeros: its rows become padding on block 0.
"""

from dataclasses import dataclass

import torch

from penstock_kernels.triton_support import uses_triton


@dataclass(frozen=True, slots=True)
class StepTokens:
    """A step as far as the host can build it. Contiguous int64 columns."""

    row_seats: torch.Tensor  # [R]
    token_seats: torch.Tensor  # [T]; the very same tensor as row_seats where every row is one token
    feed_ids: torch.Tensor  # [T], -1: the seat's last sampled token
    table_entries: torch.Tensor  # [T], position // tokens_per_block
    block_offsets: torch.Tensor  # [T], position % tokens_per_block


@dataclass(frozen=True, slots=True)
class SeatState:
    """What the device keeps of the seats. Contiguous."""

    alias: torch.Tensor  # int64 [N + 1], the seat itself, or the pad seat once it is dead
    last_token: torch.Tensor  # int64 [N + 1]
    block_table: torch.Tensor  # int32 [N + 1, W]


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """What the model's forward pass needs of them."""

    row_seats: torch.Tensor  # int64 [R], aliases
    token_ids: torch.Tensor  # int64 [T]
    slot_mapping: torch.Tensor  # int64 [T], block * tokens_per_block + offset
    block_table: torch.Tensor  # int32 [R, width]


def prepare_step(tokens: StepTokens, seats: SeatState, tokens_per_block: int, width: int) -> PreparedStep:
    """One launch on a GPU. `width`: how many entries of each row's block table are wanted, at most W."""
    if uses_triton(seats.block_table):
        from penstock_kernels.prepare_step_triton import prepare_step_triton

        return prepare_step_triton(tokens, seats, tokens_per_block, width)
    return prepare_step_cpu(tokens, seats, tokens_per_block, width)


def prepare_step_cpu(tokens: StepTokens, seats: SeatState, tokens_per_block: int, width: int) -> PreparedStep:
    """Plain torch, on any device."""
    row_seats = seats.alias.index_select(0, tokens.row_seats)
    one_each = tokens.token_seats is tokens.row_seats
    token_seats = row_seats if one_each else seats.alias.index_select(0, tokens.token_seats)
    last_tokens = seats.last_token.index_select(0, token_seats)
    entries = torch.add(tokens.table_entries, token_seats, alpha=seats.block_table.shape[1])
    blocks = seats.block_table.view(-1).index_select(0, entries)
    return PreparedStep(
        row_seats=row_seats,
        token_ids=torch.where(tokens.feed_ids < 0, last_tokens, tokens.feed_ids),
        slot_mapping=torch.add(tokens.block_offsets, blocks, alpha=tokens_per_block),
        block_table=seats.block_table[:, :width].index_select(0, row_seats),
    )


def prepare_step_ref(tokens: StepTokens, seats: SeatState, tokens_per_block: int, width: int) -> PreparedStep:
    """Row by row and token by token."""
    alias, last, table = seats.alias.tolist(), seats.last_token.tolist(), seats.block_table.tolist()
    ids, slots = [], []
    columns = (tokens.token_seats, tokens.feed_ids, tokens.table_entries, tokens.block_offsets)
    for seat, feed_id, entry, offset in zip(*(column.tolist() for column in columns), strict=True):
        ids.append(last[alias[seat]] if feed_id < 0 else feed_id)
        slots.append(table[alias[seat]][entry] * tokens_per_block + offset)
    rows = [alias[seat] for seat in tokens.row_seats.tolist()]
    return PreparedStep(
        row_seats=torch.tensor(rows),
        token_ids=torch.tensor(ids),
        slot_mapping=torch.tensor(slots),
        block_table=torch.tensor([table[row][:width] for row in rows], dtype=torch.int32),
    )
