"""The batch builder against a loop over rows and tokens, on random seats and plans."""

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_server.batch import MAX_REPLAYED_PROMPTS, BatchBuilder, forward_batch
from penstock_server.plan import decode_plan
from penstock_server.plan_checks import PlanLimits
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.row_status import RowStatus
from penstock_server.seats import DeviceSeats, SeatTable
from penstock_server.staging import Staging, StepShape

TOKENS_PER_BLOCK, WIDTH, VOCAB = 4, 8, 50
LIMITS = PlanLimits(
    num_seats=12,
    num_penalty_lanes=0,
    num_blocks=100,
    blocks_per_seat=WIDTH,
    vocab_size=VOCAB,
    max_rows=8,
    max_tokens=40,
    max_seq_len=WIDTH * TOKENS_PER_BLOCK,
    max_top_logprobs=0,
    decode_sizes=(1, 2, 4, 8),
    mixed_sizes=(8, 24, 40),
)
DEVICE = torch.device("cpu")


@st.composite
def worlds(draw):
    """Seats with some tokens fed, some of them dead on the device, and the rows of the plan that comes next."""
    num_rows = draw(st.integers(1, LIMITS.max_rows))
    lengths = [draw(st.integers(1, 20)) for _ in range(LIMITS.num_seats)]
    rows, budget = [], LIMITS.max_tokens
    for seat in draw(st.permutations(range(LIMITS.num_seats)))[:num_rows]:
        count = min(draw(st.sampled_from([0, 0, 1, 2, 7])), budget - (num_rows - len(rows) - 1))
        budget -= max(count, 1)
        ids = tuple(draw(st.integers(0, VOCAB - 1)) for _ in range(count))
        rows.append(PlanRow(seat, draw(st.booleans()), lengths[seat] if count else 0, ids))
    dead = draw(st.sets(st.integers(0, LIMITS.num_seats - 1), max_size=3))
    last = draw(st.lists(st.integers(0, VOCAB - 1), min_size=LIMITS.num_seats, max_size=LIMITS.num_seats))
    return lengths, rows, dead, last


def block_of(seat, index):
    return 1 + seat * WIDTH + index


def prepare(lengths, dead, last):
    """Seats in that state. Every seat has all its blocks."""
    host = SeatTable(LIMITS.num_seats, WIDTH, TOKENS_PER_BLOCK)
    device = DeviceSeats(LIMITS.num_seats, WIDTH, DEVICE)
    seats = range(LIMITS.num_seats)
    draft = PlanDraft(
        registrations=[NewSeat(seat, 1, 1, LIMITS.max_seq_len) for seat in seats],
        appends=[(seat, 0, index, block_of(seat, index)) for seat in seats for index in range(WIDTH)],
    )
    device.apply(host.apply(decode_plan(1, draft.encode(), None, LIMITS)))
    host.length[:], host.sampled[:], host.fresh[:] = lengths, True, False
    device.last_token[:-1] = torch.tensor(last)
    device.kill(torch.tensor(sorted(dead), dtype=torch.int64))
    return host, device


def expected_rows(lengths, rows, dead, last):
    """Row by row: (seat, ids, positions, slots, table, sample), decode rows first, in the order of the plan."""
    result = []
    for row in sorted(rows, key=lambda row: len(row.ids) > 1):
        ids = list(row.ids) or [0 if row.seat in dead else last[row.seat]]
        positions = list(range(lengths[row.seat], lengths[row.seat] + len(ids)))
        table = [0 if row.seat in dead else block_of(row.seat, index) for index in range(WIDTH)]
        slots = [table[p // TOKENS_PER_BLOCK] * TOKENS_PER_BLOCK + p % TOKENS_PER_BLOCK for p in positions]
        result.append((row, ids, positions, slots, table))
    return result


@settings(max_examples=250, deadline=None)
@given(worlds(), st.booleans())
def test_the_batch_is_what_a_loop_builds(world, for_replay):
    lengths, rows, dead, last = world
    host, device = prepare(lengths, dead, last)
    largest = StepShape(LIMITS.max_rows, LIMITS.max_tokens, LIMITS.max_rows, WIDTH, decode=False)
    staging = Staging(largest, 2, DEVICE)
    staging._ring[1].fill_(-7)  # what an earlier step left must not matter
    plan = decode_plan(2, PlanDraft(rows=rows).encode(), None, LIMITS)
    builder = BatchBuilder(LIMITS.decode_sizes, LIMITS.mixed_sizes, VOCAB, for_replay)
    staged, report = builder.build(plan, host, staging, entry=1)
    staging.upload(1, staged.shape)
    prepared = forward_batch(staging.device(staged.shape), staged, device, TOKENS_PER_BLOCK)
    columns = staging.device(staged.shape)
    assert staged.shape.any_mix == (for_replay and not staged.shape.decode)
    check_batch(prepared, staged, expected_rows(lengths, rows, dead, last), dead)
    check_samples(columns, staged, expected_rows(lengths, rows, dead, last))
    assert report.status.tolist() == [RowStatus.OK] * len(rows)
    assert report.positions.tolist() == [lengths[row.seat] + max(1, len(row.ids)) for row in rows]
    assert [rows[index].seat for index in report.sample_rows] == [
        row.seat for row in sorted(rows, key=lambda row: len(row.ids) > 1) if row.sample
    ]


def check_batch(prepared, staged, expected, dead):
    batch, shape = prepared.batch, staged.shape
    attention = batch.attention
    num_tokens, num_rows = sum(len(ids) for _, ids, *_ in expected), len(expected)
    assert shape.decode == (num_tokens == num_rows)
    sizes = LIMITS.decode_sizes if shape.decode else LIMITS.mixed_sizes
    assert shape.num_tokens == min(size for size in sizes if size >= num_tokens)
    pad_tokens, pad_rows = shape.num_tokens - num_tokens, shape.num_rows - num_rows

    fed = [(row, token) for row, ids, *_ in expected for token in ids]
    for index, (row, token) in enumerate(fed):
        if row.ids or row.seat not in dead:
            assert batch.token_ids[index] == token
    assert ((batch.token_ids >= 0) & (batch.token_ids < VOCAB)).all()
    assert batch.positions.tolist() == [p for _, _, positions, *_ in expected for p in positions] + [0] * pad_tokens
    slots = [slot for *_, slots, _ in expected for slot in slots]
    assert attention.slot_mapping.tolist()[:num_tokens] == slots
    assert (attention.slot_mapping[num_tokens:] < TOKENS_PER_BLOCK).all()

    longest = max(positions[-1] + 1 for _, _, positions, *_ in expected)
    assert shape.table_width >= -(-longest // TOKENS_PER_BLOCK)
    tables = [table[: shape.table_width] for *_, table in expected]
    assert attention.block_table.tolist() == tables + [[0] * shape.table_width] * pad_rows
    seq_lens = [positions[-1] + 1 for _, _, positions, *_ in expected] + [0] * pad_rows
    query_lens = [len(ids) for _, ids, *_ in expected] + [int(shape.decode)] * pad_rows
    assert pad_rows == 0 or shape.decode or num_rows + pad_rows == min(shape.num_tokens, LIMITS.max_rows)
    assert attention.seq_lens.tolist() == attention.host_seq_lens.tolist() == seq_lens
    assert attention.host_query_lens.tolist() == query_lens
    assert attention.query_starts.tolist() == [0, *np.cumsum(query_lens).tolist()]
    assert attention.num_decode_rows == attention.decode_rows.item() == query_lens.count(1)
    assert attention.max_prompt_rows == (MAX_REPLAYED_PROMPTS if shape.any_mix else None)
    pad = LIMITS.num_seats
    aliases = [pad if row.seat in dead else row.seat for row, *_ in expected] + [pad] * pad_rows
    assert prepared.row_seats.tolist() == aliases


def check_samples(columns, staged, expected):
    logits_index = columns.logits_index
    last_tokens = np.cumsum([len(ids) for _, ids, *_ in expected]) - 1
    samples = [last_tokens[index] for index, (row, *_) in enumerate(expected) if row.sample]
    assert logits_index.tolist()[: len(samples)] == samples
    assert len(logits_index) == min(size for size in (0, *LIMITS.decode_sizes) if size >= len(samples))


def test_sizes_of_a_step_share_one_device_buffer():
    staging = Staging(StepShape(4, 8, 4, 8, decode=False), 2, DEVICE)
    shape = StepShape(4, 4, 4, 8, decode=True)
    columns = staging.host(0, shape)
    for index, name in enumerate(("row_seats", "feed_ids", "positions", "seq_lens", "query_starts")):
        getattr(columns, name)[:] = index + 1
    staging.upload(0, shape)
    device = staging.device(shape)
    assert staging.device(shape) is device
    assert device.row_seats.tolist() == device.token_seats.tolist() == [1] * 4
    assert device.seq_lens.tolist() == [4] * 4
    assert device.query_starts.tolist() == [5] * 5


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=LIMITS.max_rows), st.integers(3, 16), st.booleans(), st.data())
def test_rows_that_repeat_are_staged_as_if_they_were_new(lengths, num_steps, for_replay, data):
    """Against a builder that never saw the step before: columns, seats and report; until rows end."""
    lengths += [1] * (LIMITS.num_seats - len(lengths))
    num_rows = data.draw(st.integers(1, LIMITS.max_rows))
    (host, _), (other, _) = (prepare(lengths, set(), [0] * LIMITS.num_seats) for _ in range(2))
    for name, limit in (("max_len", st.integers(5, 32)), ("granted_tokens", st.sampled_from([8, 20, 24, 32]))):
        limits = data.draw(st.lists(limit, min_size=num_rows, max_size=num_rows), label=name)
        getattr(host, name)[:num_rows] = getattr(other, name)[:num_rows] = limits
    largest = StepShape(LIMITS.max_rows, LIMITS.max_tokens, LIMITS.max_rows, WIDTH, decode=False)
    staging, fresh = Staging(largest, 3, DEVICE), Staging(largest, 3, DEVICE)
    builder = BatchBuilder(LIMITS.decode_sizes, LIMITS.mixed_sizes, VOCAB, for_replay)
    rows, previous = [PlanRow(seat) for seat in range(num_rows)], None
    for step in range(num_steps):
        event = data.draw(st.sampled_from(["nothing"] * 12 + ["capture", "free"]), label="meanwhile")
        frees = [(num_rows - 1, 1)] if event == "free" and host.generation[num_rows - 1] else []
        draft = PlanDraft(rows=rows, same_rows=previous is not None, frees=frees)
        plan = decode_plan(2 + step, draft.encode(), previous, LIMITS)
        previous = plan.rows
        for table in (host, other):
            table.apply(plan)
        if event == "capture":
            builder.idle_step(LIMITS.decode_sizes[-1], True, host, staging)
        mine = builder.build(plan, host, staging, step % 3)
        new = BatchBuilder(LIMITS.decode_sizes, LIMITS.mixed_sizes, VOCAB, for_replay)
        theirs = new.build(plan, other, fresh, step % 3)
        check_same(mine, theirs, staging, fresh)
        for name in ("length", "failed", "sampled", "fresh"):
            assert (getattr(host, name) == getattr(other, name)).all(), name


def check_same(mine, theirs, staging, fresh):
    for field in fields(theirs[1]):
        assert (getattr(mine[1], field.name) == getattr(theirs[1], field.name)).all(), field.name
    assert (mine[0] is None) == (theirs[0] is None)
    if theirs[0] is not None:
        assert mine[0].shape == theirs[0].shape
        columns = staging.host(mine[0].entry, mine[0].shape), fresh.host(theirs[0].entry, theirs[0].shape)
        for field in fields(columns[0]):
            assert (getattr(columns[0], field.name) == getattr(columns[1], field.name)).all(), field.name
