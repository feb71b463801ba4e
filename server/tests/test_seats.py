"""Seats: the host's and the device's state after the same edits."""

import pytest
import torch
from shard_testkit.limits import LIMITS

from penstock_server.plan import decode_plan
from penstock_server.plan_encoding import NewSeat, PlanDraft
from penstock_server.seats import DeviceSeats, SeatTable

TOKENS_PER_BLOCK = 4
PAD = LIMITS.num_seats


class Seats:
    """Both halves, edited by the same plans."""

    def __init__(self):
        self.host = SeatTable(LIMITS.num_seats, LIMITS.blocks_per_seat, TOKENS_PER_BLOCK)
        self.device = DeviceSeats(LIMITS.num_seats, LIMITS.blocks_per_seat, torch.device("cpu"))

    def apply(self, **orders):
        plan = decode_plan(1, PlanDraft(**orders).encode(), None, LIMITS)
        edits = self.host.apply(plan)
        self.device.apply(edits)

    def table(self, seat):
        return self.device.block_table[seat].tolist()


@pytest.fixture
def seats():
    return Seats()


def new(seat, generation=1):
    return NewSeat(seat, generation, prompt_len=1, max_len=32)


def test_appends_fill_the_table_and_grant_tokens(seats):
    seats.apply(registrations=[new(3), new(5)], appends=[(3, 0, 0, 9), (5, 0, 0, 7), (3, 0, 1, 8)])
    assert seats.table(3) == [9, 8, 0, 0, 0, 0, 0, 0]
    assert seats.table(5) == [7, 0, 0, 0, 0, 0, 0, 0]
    assert seats.host.granted_tokens[[3, 5]].tolist() == [8, 4]
    seats.apply(appends=[(3, 0, index, 20 + index) for index in range(2, LIMITS.blocks_per_seat)])
    assert seats.host.granted_tokens[3] == LIMITS.blocks_per_seat * TOKENS_PER_BLOCK


def test_registration_zero_fills_the_table(seats):
    seats.apply(registrations=[new(3)], appends=[(3, 0, 0, 9), (3, 0, 1, 8)])
    seats.apply(frees=[(3, 1)], registrations=[new(3, 2)], appends=[(3, 0, 1, 5)])
    assert seats.table(3) == [0, 5, 0, 0, 0, 0, 0, 0]
    assert seats.host.granted_tokens[3] == 0, "a former owner's block still counts"


def test_a_free_comes_before_a_registration_and_that_before_an_append(seats):
    seats.apply(registrations=[new(3)], appends=[(3, 0, 0, 9)])
    seats.apply(appends=[(3, 0, 0, 4)], registrations=[new(3, 2)], frees=[(3, 1)])
    assert seats.host.generation[3] == 2
    assert seats.table(3)[0] == 4


def test_registration_forgets_the_last_token_and_revives(seats):
    seats.apply(registrations=[new(3)])
    seats.device.store(torch.tensor([3]), torch.tensor([42]))
    assert (seats.device.last_token[3], seats.device.alias[3]) == (42, 3)
    seats.device.store(torch.tensor([3]), torch.tensor([-1]))
    assert (seats.device.last_token[3], seats.device.alias[3]) == (0, PAD)
    seats.apply(frees=[(3, 1)], registrations=[new(3, 2)])
    assert (seats.device.last_token[3], seats.device.alias[3]) == (0, 3)


def test_the_pad_seat_has_no_blocks_and_never_dies(seats):
    seats.device.store(torch.tensor([PAD, PAD]), torch.tensor([-1, 7]))
    assert seats.device.alias[PAD] == PAD
    assert seats.table(PAD) == [0] * LIMITS.blocks_per_seat


def test_clear_makes_every_seat_dead(seats):
    seats.apply(registrations=[new(3)], appends=[(3, 0, 0, 9)])
    seats.host.clear()
    seats.device.clear()
    assert seats.host.failed.all()
    assert (seats.device.alias == PAD).all()
    assert not seats.device.block_table.any()
    seats.apply(registrations=[new(3)])  # generations begin again with a new stream
