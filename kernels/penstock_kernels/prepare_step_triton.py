"""The preparation of a step on a GPU. Shapes: R padded rows, T padded tokens, W entries of a seat's block table."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from penstock_kernels.prepare_step import PreparedStep, SeatState, StepTokens
from penstock_kernels.triton_support import power_of_two

# Entries of a table, or tokens, that one program takes.
_BLOCK = 512


def prepare_step_triton(tokens: StepTokens, seats: SeatState, tokens_per_block: int, width: int) -> PreparedStep:
    """See `prepare_step`."""
    num_rows, num_tokens, device = tokens.row_seats.shape[0], tokens.feed_ids.shape[0], seats.alias.device
    assert seats.block_table.is_contiguous()
    out = PreparedStep(
        row_seats=torch.empty(num_rows, dtype=torch.int64, device=device),
        token_ids=torch.empty(num_tokens, dtype=torch.int64, device=device),
        slot_mapping=torch.empty(num_tokens, dtype=torch.int64, device=device),
        block_table=torch.empty((num_rows, width), dtype=torch.int32, device=device),
    )
    block = min(_BLOCK, power_of_two(width))
    pieces = -(-width // block)
    _prepare_step_kernel[(num_rows * pieces + -(-num_tokens // block),)](
        tokens.row_seats, tokens.token_seats, tokens.feed_ids, tokens.table_entries, tokens.block_offsets,
        seats.alias, seats.last_token, seats.block_table,
        out.row_seats, out.token_ids, out.slot_mapping, out.block_table,
        num_rows, num_tokens, tokens_per_block,
        table_width=seats.block_table.shape[1], width=width, pieces=pieces, block=block, num_warps=4,
    )  # fmt: skip
    return out


# The columns lie at any multiple of 8 bytes in the step's staging buffer: one compiled kernel serves all.
@triton.jit(
    do_not_specialize=["num_rows", "num_tokens", "tokens_per_block"],
    do_not_specialize_on_alignment=["row_seats", "token_seats", "feed_ids", "table_entries", "block_offsets"],
)
def _prepare_step_kernel(
    row_seats,
    token_seats,
    feed_ids,
    table_entries,
    block_offsets,
    alias,
    last_token,
    block_table,
    out_row_seats,
    out_token_ids,
    out_slots,
    out_table,
    num_rows,
    num_tokens,
    tokens_per_block,
    table_width: tl.constexpr,
    width: tl.constexpr,
    pieces: tl.constexpr,  # programs of a row's table
    block: tl.constexpr,
):
    """First a program for every piece of every row's table, then one for every run of tokens."""
    program, place = tl.program_id(0), tl.arange(0, block)
    if program < num_rows * pieces:
        row, piece = program // pieces, program % pieces * block + place
        row_seat = tl.load(alias + tl.load(row_seats + row))
        table = tl.load(block_table + row_seat * table_width + piece, mask=piece < width, other=0)
        tl.store(out_table + row.to(tl.int64) * width + piece, table, mask=piece < width)
        if program % pieces == 0:
            tl.store(out_row_seats + row, row_seat)
    else:
        token = (program - num_rows * pieces) * block + place
        there = token < num_tokens
        seat = tl.load(alias + tl.load(token_seats + token, mask=there, other=0), mask=there, other=0)
        feed_id = tl.load(feed_ids + token, mask=there, other=0)
        last = tl.load(last_token + seat, mask=there & (feed_id < 0), other=0)
        tl.store(out_token_ids + token, tl.where(feed_id < 0, last, feed_id), mask=there)
        entry = tl.load(table_entries + token, mask=there, other=0)
        page = tl.load(block_table + seat * table_width + entry, mask=there, other=0).to(tl.int64)
        offset = tl.load(block_offsets + token, mask=there, other=0)
        tl.store(out_slots + token, page * tokens_per_block + offset, mask=there)
