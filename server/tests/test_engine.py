"""The engine, plan by plan: what each kind of row answers, and that no row touches another."""

import threading

import numpy as np
import pytest
import torch
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference

from penstock_server.plan_checks import PlanError
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag
from penstock_server.row_status import RowStatus

REFERENCE = IntegerReference(vocab_size=64)
SIZES = EngineSizes()
OK, OVERRUN, NAN, DEAD = RowStatus.OK, RowStatus.OVERRUN, RowStatus.NAN, RowStatus.DEAD


@pytest.fixture
def model(tmp_path):
    return integer_model(REFERENCE, tmp_path)


@pytest.fixture
def engine(model):
    engine = LocalEngine(model, SIZES)
    yield engine
    engine.close()


def new(seat, generation=1, max_len=64, **changes):
    return NewSeat(seat, generation, prompt_len=1, max_len=max_len, **changes)


def blocks(seat, *numbers, first=0):
    return [(seat, 0, first + index, block) for index, block in enumerate(numbers)]


def begin(engine, seat, prompt, *numbers, generation=1, max_len=64, **changes):
    """Registers a seat, feeds it a prompt and returns its row's answer."""
    draft = PlanDraft(
        registrations=[new(seat, generation, max_len, **changes)],
        appends=blocks(seat, *numbers),
        rows=[PlanRow(seat, ids=tuple(prompt))],
    )
    return engine.run(draft).rows[0]


def step(engine, *rows):
    return engine.run(PlanDraft(rows=list(rows))).rows


def pool_contents(engine):
    """All blocks but the scratch one; -1 for NaN, so that they compare."""
    return torch.stack([pool[1:] for pool in (*engine.kv.keys, *engine.kv.values)]).nan_to_num(-1)


def statuses(rows):
    return [row.status for row in rows]


def test_a_plan_without_rows_is_answered(engine):
    result = engine.run(PlanDraft())
    assert (result.plan_id, result.rows, result.ids_checksum) == (1, (), 0)


def test_rows_are_answered_in_the_order_of_the_plan(engine):
    prompts = {7: (1, 2, 3), 2: (4,), 9: (5, 6), 4: (8,)}
    draft = PlanDraft(
        registrations=[new(seat) for seat in prompts],
        appends=[append for seat in prompts for append in blocks(seat, seat)],
        rows=[PlanRow(seat, seat != 9, ids=ids) for seat, ids in prompts.items()],
    )
    rows = engine.run(draft).rows
    assert [(row.seat, row.position) for row in rows] == [(7, 3), (2, 1), (9, 2), (4, 1)]
    expected = [tuple(REFERENCE.generate(list(ids), 1)) if seat != 9 else () for seat, ids in prompts.items()]
    assert [row.tokens for row in rows] == expected


def test_same_rows_continue(engine):
    first = begin(engine, 3, (5, 6), 1)
    tokens = [*first.tokens, *step(engine, PlanRow(3))[0].tokens]
    tokens += engine.run(PlanDraft(rows=[PlanRow(3)], same_rows=True)).rows[0].tokens
    assert tokens == REFERENCE.generate([5, 6], 3)


def test_a_write_without_a_block_is_an_overrun_that_touches_nobody(engine):
    begin(engine, 0, (1, 2, 3), 1)
    begin(engine, 1, (4, 5, 6, 7), 2)
    before = pool_contents(engine)
    answer = step(engine, PlanRow(1))[0]
    assert (answer.status, answer.tokens) == (OVERRUN, ())
    assert torch.equal(pool_contents(engine), before)
    assert step(engine, PlanRow(0))[0].tokens == tuple(REFERENCE.generate([1, 2, 3], 2)[1:])
    assert statuses(step(engine, PlanRow(1))) == [DEAD]


def test_a_hole_in_a_block_table_is_not_granted(engine):
    draft = PlanDraft(registrations=[new(0)], appends=[(0, 0, 1, 2)], rows=[PlanRow(0, ids=(1,))])
    assert statuses(engine.run(draft).rows) == [OVERRUN]


@pytest.mark.parametrize(("sample", "status"), [(True, OVERRUN), (False, OK)])
def test_no_token_is_computed_at_the_limit(engine, sample, status):
    draft = PlanDraft(registrations=[new(0, max_len=3)], appends=blocks(0, 1), rows=[PlanRow(0, sample, ids=(1, 2, 3))])
    assert statuses(engine.run(draft).rows) == [status]


@pytest.mark.parametrize(
    "row",
    [
        PlanRow(0, ids=(64,)),
        PlanRow(0, ids=(1, -1, 2)),
        PlanRow(0, start=1, ids=(1,)),
        PlanRow(0),
    ],
    ids=["beyond the vocabulary", "negative", "not at the end", "nothing to continue"],
)
def test_bad_input_fails_its_row_alone(engine, row):
    draft = PlanDraft(
        registrations=[new(0), new(1)],
        appends=blocks(0, 1) + blocks(1, 2),
        rows=[row, PlanRow(1, ids=(9, 8))],
    )
    rows = engine.run(draft).rows
    assert statuses(rows) == [RowStatus.BAD_INPUT, OK]
    assert rows[1].tokens == tuple(REFERENCE.generate([9, 8], 1))
    assert statuses(step(engine, row)) == [DEAD]


def test_a_seat_that_was_never_registered_is_dead(engine):
    row = step(engine, PlanRow(5))[0]
    assert (row.generation, row.position, row.status) == (0, 0, DEAD)


def test_a_freed_seat_is_dead(engine):
    begin(engine, 3, (1,), 1)
    rows = engine.run(PlanDraft(frees=[(3, 1)], rows=[PlanRow(3)])).rows
    assert (rows[0].generation, rows[0].status) == (0, DEAD)


def test_registering_a_seat_again_revives_it_with_an_empty_table(engine):
    assert begin(engine, 3, (REFERENCE.nan_token,), 1).status == NAN
    assert statuses(step(engine, PlanRow(3))) == [DEAD]
    draft = PlanDraft(frees=[(3, 1)], registrations=[new(3, generation=2)], rows=[PlanRow(3, ids=(1,))])
    assert statuses(engine.run(draft).rows) == [OVERRUN]
    engine.run(PlanDraft(frees=[(3, 2)]))
    assert begin(engine, 3, (1, 2), 1, generation=3).tokens == tuple(REFERENCE.generate([1, 2], 1))


def test_a_dead_row_writes_to_block_zero_only(engine):
    """The plan after a NaN was launched without knowing of it; its row must not write to the seat's blocks any more."""
    draft = PlanDraft(
        registrations=[new(0)], appends=blocks(0, 1, 2), rows=[PlanRow(0, ids=(1, 2, 3, REFERENCE.nan_token))]
    )
    engine.start(draft)
    engine.start(PlanDraft(rows=[PlanRow(0)]))
    assert statuses(engine.receive().rows) == [NAN]
    assert statuses(engine.receive().rows) == [DEAD]
    assert all(pool[2].isnan().all() for pool in (*engine.kv.keys, *engine.kv.values))


def test_a_nan_row_changes_none_of_31_others_then_or_after_its_blocks_are_reused(engine):
    victim, prompts = 13, {seat: [seat + 1, 3, seat] for seat in range(32)}
    prompts[victim] = [1, REFERENCE.nan_token, 2]
    draft = PlanDraft(
        registrations=[new(seat) for seat in prompts],
        appends=[append for seat in prompts for append in blocks(seat, 1 + 2 * seat, 2 + 2 * seat)],
        rows=[PlanRow(seat, ids=tuple(ids)) for seat, ids in prompts.items()],
    )
    answers = {seat: list(row.tokens) for seat, row in enumerate(engine.run(draft).rows)}
    others = [seat for seat in prompts if seat != victim]
    for _ in range(3):
        for row in step(engine, *(PlanRow(seat) for seat in others)):
            answers[row.seat] += row.tokens
    # Its blocks go to a longer request of the same seat at once.
    reused = [31, 30, 29, 28, 27]
    draft = PlanDraft(
        frees=[(victim, 1)],
        registrations=[new(victim, generation=2)],
        appends=blocks(victim, 2 + 2 * victim, 1 + 2 * victim),
        rows=[PlanRow(victim, ids=tuple(reused)), *(PlanRow(seat) for seat in others)],
    )
    rows = engine.run(draft).rows
    for row in rows[1:]:
        answers[row.seat] += row.tokens
    assert list(rows[0].tokens) == REFERENCE.generate(reused, 1)
    assert answers.pop(victim) == []
    assert answers == {seat: REFERENCE.generate(prompts[seat], 5) for seat in others}


def test_a_first_feed_may_start_behind_shared_blocks(engine):
    prompt = [1, 2, 3, 4, 5, 6]
    begin(engine, 0, prompt, 1, 2)
    draft = PlanDraft(
        registrations=[new(1)],
        appends=blocks(1, 1, 3),
        rows=[PlanRow(1, start=SIZES.tokens_per_block, ids=tuple(prompt[SIZES.tokens_per_block :]))],
    )
    assert engine.run(draft).rows[0].tokens == tuple(REFERENCE.generate(prompt, 1))


def test_a_first_feed_does_not_start_inside_a_block(engine):
    draft = PlanDraft(registrations=[new(1)], appends=blocks(1, 1, 3), rows=[PlanRow(1, start=5, ids=(1,))])
    assert statuses(engine.run(draft).rows) == [RowStatus.BAD_INPUT]


def test_a_row_without_sample_is_fed_later(engine):
    begin(engine, 0, (1, 2), 1, 2)
    fed = step(engine, PlanRow(0, sample=False))[0]
    assert (fed.status, fed.tokens, fed.position) == (OK, (), 3)
    later = step(engine, PlanRow(0, start=3, ids=(5,)))[0]
    assert later.tokens == tuple(REFERENCE.generate([1, 2, *REFERENCE.generate([1, 2], 1), 5], 1))


@pytest.mark.parametrize("between", [PlanRow(0, sample=False), PlanRow(0, sample=False, start=2, ids=(5,))])
def test_nothing_continues_a_row_that_did_not_sample(engine, between):
    """The seat's last token is an older one, which stands before what was fed since."""
    begin(engine, 0, (1, 2), 1, 2)
    assert statuses(step(engine, between)) == [OK]
    assert statuses(step(engine, PlanRow(0))) == [RowStatus.BAD_INPUT]


@pytest.mark.parametrize(
    ("draft", "text"),
    [
        (PlanDraft(frees=[(0, 2)]), "free of seat 0 generation 2: it holds 1"),
        (PlanDraft(frees=[(1, 1)]), "free of seat 1 generation 1: it holds 0"),
        (PlanDraft(registrations=[new(0, 2)]), "seat 0 is registered while it is not free"),
        (PlanDraft(frees=[(0, 1)], registrations=[new(0, 1)]), "generation 1 of seat 0 is not above its last one"),
        (PlanDraft(registrations=[new(1, penalty_lane=2)]), "penalty_lane 2 occurs twice"),
        (PlanDraft(appends=blocks(2, 1)), "block append to seat 2, which is not registered"),
    ],
)
def test_a_plan_that_contradicts_the_seats_is_refused(engine, draft, text):
    begin(engine, 0, (1,), 1, penalty_lane=2)
    with pytest.raises(PlanError, match=text):
        engine.run(draft)


def test_clear_forgets_every_seat(engine):
    begin(engine, 0, (1, 2), 1)
    engine.engine.clear()
    assert statuses(step(engine, PlanRow(0))) == [DEAD]
    assert not engine.parts.seats.block_table.any()
    assert begin(engine, 0, (1, 2), 1).status == OK


def test_padded_sizes_may_be_ordered(engine):
    draft = PlanDraft(
        registrations=[new(0)], appends=blocks(0, 1, 2), rows=[PlanRow(0, ids=(1, 2, 3))], padded_tokens=48
    )
    tokens = engine.run(draft).rows[0].tokens
    tokens += engine.run(PlanDraft(rows=[PlanRow(0)], padded_rows=16)).rows[0].tokens
    assert list(tokens) == REFERENCE.generate([1, 2, 3], 2)


def test_logprobs_come_for_the_rows_whose_seats_asked(engine):
    wants = {0: (0, 0), 1: (SeatFlag.LOGPROBS | SeatFlag.RAW_LOGPROBS, 0), 2: (SeatFlag.LOGPROBS, 3), 3: (0, 2)}
    draft = PlanDraft(
        registrations=[new(seat, flags=flags, num_top_logprobs=top) for seat, (flags, top) in wants.items()],
        appends=[append for seat in wants for append in blocks(seat, seat + 1)],
        rows=[PlanRow(seat, ids=(seat, 5)) for seat in (2, 0, 3, 1)],
    )
    engine.start(draft)
    result = engine.engine.collect(engine.tickets.pop())
    tokens = np.frombuffer(result.token_ids, np.int32)
    logprobs, top = np.frombuffer(result.logprobs, np.float32), np.frombuffer(result.top_logprobs, np.float32)
    top_ids = np.frombuffer(result.top_ids, np.int32)
    # The model's logits are 0, -1, -2, ... whatever the tokens are.
    logits = -np.arange(REFERENCE.vocab_size, dtype=np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(logprobs, [expected[0]] * 2, atol=1e-5)
    np.testing.assert_allclose(top, [*expected[:3], *expected[:2]], atol=1e-5)
    best = [(tokens[0] + offset) % REFERENCE.vocab_size for offset in range(3)]
    assert top_ids.tolist() == [*best, tokens[2], (tokens[2] + 1) % REFERENCE.vocab_size]


class Gate:
    """A model that waits before each forward pass until it is let through, or fails instead."""

    def __init__(self, model):
        self._model = model
        self.vocab_size, self.kv_spec, self.logits = model.vocab_size, model.kv_spec, model.logits
        self.gate = threading.Semaphore(0)
        self.error = None

    def forward(self, batch, kv):
        assert self.gate.acquire(timeout=30)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._model.forward(batch, kv)


@pytest.fixture
def gated(model):
    engine = LocalEngine(Gate(model), SIZES)
    yield engine
    engine.close()


def let_through(engine, count):
    for _ in range(count):
        engine.parts.model.gate.release()


def test_launch_does_not_wait_for_the_step(gated):
    gated.start(PlanDraft(registrations=[new(0)], appends=blocks(0, 1, 2), rows=[PlanRow(0, ids=(1, 2))]))
    gated.start(PlanDraft(rows=[PlanRow(0)]))
    assert not any(ticket.done.is_set() for ticket in gated.tickets)
    let_through(gated, 2)
    tokens = gated.receive().rows[0].tokens + gated.receive().rows[0].tokens
    assert list(tokens) == REFERENCE.generate([1, 2], 2)


def test_a_step_says_whether_the_next_plan_had_arrived(gated):
    gated.start(PlanDraft(registrations=[new(0)], appends=blocks(0, 1, 2), rows=[PlanRow(0, ids=(1, 2))]))
    gated.start(PlanDraft(rows=[PlanRow(0)]))
    let_through(gated, 2)
    results = [gated.engine.collect(ticket) for ticket in gated.tickets]
    assert [result.next_plan_waiting for result in results] == [True, False]


def test_out_of_memory_fails_the_rows_of_the_step_and_those_in_flight(gated):
    let_through(gated, 1)
    begin(gated, 0, (1, 2), 1, 2)
    gated.parts.model.error = torch.OutOfMemoryError("CUDA out of memory")
    gated.start(PlanDraft(rows=[PlanRow(0), PlanRow(9)]))
    gated.start(PlanDraft(rows=[PlanRow(0)]))
    let_through(gated, 2)
    assert statuses(gated.receive().rows) == [RowStatus.OUT_OF_MEMORY, DEAD]
    assert statuses(gated.receive().rows) == [DEAD]
    let_through(gated, 1)
    gated.run(PlanDraft(frees=[(0, 1)]))
    assert begin(gated, 0, (1, 2), 1, generation=2).tokens == tuple(REFERENCE.generate([1, 2], 1))


def test_out_of_memory_in_the_edits_leaves_no_seat_with_another_ones_blocks(engine, monkeypatch):
    """The edits of the plan are lost: whoever it registered or gave blocks must not run on the blocks of before."""
    begin(engine, 0, (1, 2), 1)
    begin(engine, 1, (3, 4, 5), 2)
    begin(engine, 2, (6, 7), 3)
    before = pool_contents(engine)

    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.parts.sampler, "register", fail)
        draft = PlanDraft(
            frees=[(0, 1)],
            registrations=[new(0, generation=2)],
            appends=[*blocks(0, 4), *blocks(1, 5, first=1)],
            rows=[PlanRow(9)],
        )
        assert statuses(engine.run(draft).rows) == [DEAD]
    rows = step(engine, PlanRow(0, ids=(8, 9)), PlanRow(1), PlanRow(2))
    assert statuses(rows) == [DEAD, DEAD, OK]
    assert rows[2].tokens == tuple(REFERENCE.generate([6, 7], 2)[1:])
    changed = (pool_contents(engine) != before).any(dim=(0, 2, 3, 4))
    assert (changed.nonzero() + 1).tolist() == [[3]], "blocks of others were written"
    engine.run(PlanDraft(frees=[(0, 2)]))
    assert begin(engine, 0, (1, 2), 1, generation=3).tokens == tuple(REFERENCE.generate([1, 2], 1))


def test_out_of_memory_is_fatal_where_the_seats_could_not_be_killed(gated, monkeypatch):
    def fail(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(gated.parts.seats, "kill", fail)
    gated.parts.model.error = torch.OutOfMemoryError("CUDA out of memory")
    gated.start(PlanDraft(registrations=[new(0)], appends=blocks(0, 1), rows=[PlanRow(0, ids=(1,))]))
    let_through(gated, 1)
    assert gated.tickets[0].done.wait(30), "the ticket was never answered"
    with pytest.raises(RuntimeError, match="seats of plan 1 could not be made dead"):
        gated.receive()


class BrokenEvent:
    """A CUDA event behind an operation that has failed, which shows when somebody waits."""

    def record(self, stream):
        pass

    def synchronize(self):
        raise RuntimeError("CUDA error: an illegal memory access")


def test_an_error_that_shows_when_the_step_is_waited_for_reaches_the_caller(engine, monkeypatch):
    monkeypatch.setattr(engine.engine, "_is_cuda", True)
    monkeypatch.setattr(engine.engine, "_step_ended", [BrokenEvent()])
    engine.start(PlanDraft(registrations=[new(0)], appends=blocks(0, 1), rows=[PlanRow(0, ids=(1,))]))
    assert engine.tickets[0].done.wait(30), "the ticket was never answered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.receive()


def test_any_other_error_reaches_the_caller(gated):
    gated.parts.model.error = RuntimeError("a bug")
    gated.start(PlanDraft(registrations=[new(0)], appends=blocks(0, 1), rows=[PlanRow(0, ids=(1,))]))
    let_through(gated, 1)
    with pytest.raises(RuntimeError, match="a bug"):
        gated.receive()
