"""The preparation of a step: live, dead and padded rows of any number, over tables of any width."""

import dataclasses

import pytest
import torch

from penstock_kernels.prepare_step import SeatState, StepTokens, prepare_step, prepare_step_ref

SEATS, TOKENS_PER_BLOCK = 9, 16


def step(num_rows, num_tokens, table_width, seed=0):
    """Some seats are dead; rows may be theirs, or the pad seat's."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(high, *size):
        return torch.randint(0, high, size, generator=generator)

    table = numbers(1 << 20, SEATS + 1, table_width).int()
    table[SEATS] = 0
    alias = torch.arange(SEATS + 1)
    alias[[2, 5]] = SEATS
    state = SeatState(alias, numbers(1000, SEATS + 1), table)
    row_seats = numbers(SEATS + 1, num_rows)
    tokens = StepTokens(
        row_seats=row_seats,
        token_seats=row_seats if num_tokens == num_rows else numbers(SEATS + 1, num_tokens),
        feed_ids=numbers(1000, num_tokens).where(numbers(2, num_tokens).bool(), torch.tensor(-1)),
        table_entries=numbers(table_width, num_tokens),
        block_offsets=numbers(TOKENS_PER_BLOCK, num_tokens),
    )
    return tokens, state


def on_device(columns, device):
    moved = {field.name: getattr(columns, field.name).to(device) for field in dataclasses.fields(columns)}
    if isinstance(columns, StepTokens) and columns.token_seats is columns.row_seats:
        moved["token_seats"] = moved["row_seats"]
    return type(columns)(**moved)


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "table_width", "width"),
    [(1, 1, 1, 1), (3, 3, 8, 8), (256, 256, 64, 64), (3, 40, 8, 4), (5, 1000, 700, 700), (2, 600, 1024, 1024)],
)
def test_equals_the_reference(num_rows, num_tokens, table_width, width, device):
    tokens, state = step(num_rows, num_tokens, table_width, seed=num_tokens)
    expected = prepare_step_ref(tokens, state, TOKENS_PER_BLOCK, width)
    got = prepare_step(on_device(tokens, device), on_device(state, device), TOKENS_PER_BLOCK, width)
    for field in dataclasses.fields(expected):
        mine, theirs = getattr(got, field.name).cpu(), getattr(expected, field.name)
        assert mine.dtype == theirs.dtype, field.name
        assert torch.equal(mine, theirs), field.name


def test_a_dead_row_is_padding_on_block_0(device):
    tokens, state = step(4, 4, 8)
    tokens.row_seats[:] = torch.tensor([2, 3, 5, SEATS])
    tokens.feed_ids[:] = -1
    got = prepare_step(on_device(tokens, device), on_device(state, device), TOKENS_PER_BLOCK, 8)
    assert got.row_seats.tolist() == [SEATS, 3, SEATS, SEATS]
    assert (got.block_table[[0, 2, 3]] == 0).all()
    assert (got.slot_mapping[[0, 2, 3]] < TOKENS_PER_BLOCK).all()
    assert got.slot_mapping[1] >= TOKENS_PER_BLOCK
