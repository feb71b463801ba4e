"""The fused choice of tokens against the references of its operations, one after another."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from kernel_testkit.triton_device import DEVICE, GPU_TESTS
from scipy import stats

from penstock_kernels.penalties import IN_PROMPT, NEUTRAL_EDIT, ONE_GENERATED
from penstock_kernels.prepare_step import SeatState
from penstock_kernels.sample_step import SampleBuffers, StepRows, sample_step, sample_step_ref
from penstock_kernels.sample_tables import FloatLine, IntLine, SampleTables, Stage
from penstock_kernels.warpers import top_k_limits, top_p_limits, typical_p_limits

pytestmark = GPU_TESTS

NUM_SEATS, NUM_LANES, MAX_TOP, WIDTH = 12, 6, 5, 9
CHUNK = 64
PROMPT_LEN = 4


@dataclass
class EditList:
    """Lists of up to WIDTH edits, padded."""

    ids: torch.Tensor
    values: torch.Tensor


def neutral_tables(vocab):
    """As of seats that nobody holds, and of the pad seat, the last."""
    ints = torch.zeros(len(IntLine), NUM_SEATS + 1, dtype=torch.int64)
    ints[IntLine.LANE], ints[IntLine.TOP_P], ints[IntLine.TYPICAL_P] = NUM_LANES, -1, 2**62
    floats = torch.zeros(len(FloatLine), NUM_SEATS + 1)
    floats[FloatLine.TEMPERATURE] = floats[FloatLine.REPETITION] = 1.0
    lists = [
        EditList(torch.zeros(NUM_SEATS + 1, WIDTH, dtype=torch.int64), torch.full((NUM_SEATS + 1, WIDTH), NEUTRAL_EDIT))
        for _ in range(2)
    ]
    history = torch.zeros(NUM_LANES + 1, vocab, dtype=torch.int32)
    return SampleTables(ints, floats, *lists, history)


def give(tables, seat, **wish):
    """Registers what a request asks for; floats by the names of their lines, the rest as a request has it."""
    vocab = tables.history.shape[1]
    ints, floats, stages = tables.ints[:, seat], tables.floats[:, seat], Stage(0)
    ints[IntLine.PROMPT_LEN] = PROMPT_LEN
    seed = wish.get("seed", 1000 + seat)
    ints[IntLine.SEED_LOW], ints[IntLine.SEED_HIGH], ints[IntLine.FORK] = seed, wish.get("seed_high", 7), seat % 2
    limits = {"top_k": top_k_limits, "top_p": top_p_limits, "typical_p": typical_p_limits}
    kinds = {"top_k": np.int32, "top_p": np.float32, "typical_p": np.float32}
    for name, of in limits.items():
        if name in wish:
            value = np.array([wish[name]], kinds[name])
            ints[IntLine[name.upper()]] = int(of(value, vocab)[0] if name == "top_k" else of(value)[0])
            stages |= Stage[name.upper()]
    for name in ("temperature", "min_p"):
        if name in wish:
            floats[FloatLine[name.upper()]] = wish[name]
            stages |= Stage[name.upper()]
    for name, stage in (("repetition", Stage.REPETITION), ("frequency", Stage.COUNTS), ("presence", Stage.COUNTS)):
        if name in wish:
            floats[FloatLine[name.upper()]] = wish[name]
            stages |= stage
    if stages & (Stage.REPETITION | Stage.COUNTS):
        ints[IntLine.LANE] = wish["lane"]
        for token in wish.get("history", ()):
            tables.history[wish["lane"], token] |= IN_PROMPT
        for token in wish.get("generated", ()):
            tables.history[wish["lane"], token] += ONE_GENERATED
    for name, table in (("edits", tables.edits), ("min_length", tables.min_length)):
        if name in wish:
            for index, (token, value) in enumerate(wish[name]):
                table.ids[seat, index], table.values[seat, index] = token, value
            ints[IntLine[f"NUM_{name.upper()}"]] = len(wish[name])
            stages |= Stage[name.upper()]
    ints[IntLine.MIN_NEW] = wish.get("min_new", 0)
    ints[IntLine.SAMPLES] = wish.get("sample", False)
    stages |= Stage.SAMPLE if wish.get("sample") else Stage(0)
    if "logprobs" in wish:
        stages |= Stage.RAW_LOGPROBS if wish["logprobs"] == "raw" else Stage.WARPED_LOGPROBS
        ints[IntLine.NUM_TOP] = wish.get("num_top", 0)
    ints[IntLine.STAGES] = int(stages)


KINDS = (
    {},
    {"sample": True},
    {"sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"sample": True, "top_k": 3, "logprobs": "warped", "num_top": 5},
    {"sample": True, "top_p": 0.5, "logprobs": "warped", "num_top": 2},
    {"sample": True, "top_p": 0.0},
    {"sample": True, "typical_p": 0.6, "logprobs": "warped", "num_top": 3},
    {"sample": True, "min_p": 0.1, "typical_p": 0.9, "top_k": 50, "top_p": 0.95, "temperature": 1.7},
    {"repetition": 1.3, "history": (1, 2, 3), "lane": 0},
    {"frequency": 0.5, "presence": 0.2, "history": (5, 6), "generated": (7, 7, 8), "lane": 1, "logprobs": "warped"},
    {"edits": [(3, 5.0), (9, -2.0), (0, -np.inf)], "logprobs": "raw", "num_top": 4},
    {"min_length": [(2, -np.inf), (9, -np.inf)], "min_new": 3, "sample": True, "min_p": 0.02},
)


def random_logits(num_rows, vocab, seed):
    """Of scale 3, a quarter of them equal to others."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab, generator=generator) * 3
    return torch.where(torch.rand(logits.shape, generator=generator) < 0.25, logits.round(), logits)


def on_device(tables):
    lists = [EditList(part.ids.to(DEVICE), part.values.to(DEVICE)) for part in (tables.edits, tables.min_length)]
    # clone: on the CPU `to` gives the same tensor, and both sides count in theirs.
    parts = (tables.ints.to(DEVICE).clone(), tables.floats.to(DEVICE), *lists, tables.history.to(DEVICE).clone())
    return SampleTables(*parts)


def poisoned(vocab, max_rows=2 * NUM_SEATS):
    """Buffers whose contents would show."""
    buffers = SampleBuffers((max_rows, vocab, MAX_TOP), DEVICE, CHUNK)
    for value in vars(buffers).values():
        if isinstance(value, torch.Tensor):
            value.fill_(torch.nan if value.is_floating_point() else 77)
    return buffers


def wanted(tables, seats):
    return Stage(int(np.bitwise_or.reduce(tables.ints[IntLine.STAGES][seats].numpy())))


def compare(logits, seats, tables, state=None, masks=None):
    """One step on both. Ids and histories are equal; log-probabilities nearly, where they were asked for."""
    theirs, on = tables, on_device(tables)
    positions = PROMPT_LEN + torch.arange(len(seats)) % 4
    seats = torch.tensor(seats)
    own_state = None
    if state is not None:
        copies = [part.to(DEVICE).clone() for part in (state.alias, state.last_token, state.block_table)]
        own_state = SeatState(*copies)
    buffers = poisoned(logits.shape[1])
    masks_there = None if masks is None else masks.to(DEVICE)
    rows = StepRows(seats.to(DEVICE), positions.to(DEVICE), own_state, masks_there)
    found = sample_step(logits.to(DEVICE), rows, on, wanted(tables, seats), buffers)
    expected = sample_step_ref(logits, StepRows(seats, positions, state, masks), theirs)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.bad.tolist() == expected.bad.tolist()
    assert torch.equal(on.history.cpu(), theirs.history)
    for row, seat in enumerate(seats if state is None else state.alias[seats]):
        stages, count = Stage(int(tables.ints[IntLine.STAGES, seat])), int(tables.ints[IntLine.NUM_TOP, seat])
        if stages & (Stage.RAW_LOGPROBS | Stage.WARPED_LOGPROBS) and not expected.bad[row]:
            close = {"rtol": 0, "atol": 2e-5}
            torch.testing.assert_close(found.logprobs.chosen[row].cpu(), expected.logprobs.chosen[row], **close)
            assert torch.equal(found.logprobs.top_ids[row, :count].cpu(), expected.logprobs.top_ids[row, :count])
            ours, top = found.logprobs.top[row, :count].cpu(), expected.logprobs.top[row, :count]
            torch.testing.assert_close(ours, top, **close)
    if state is not None:
        assert torch.equal(own_state.alias.cpu(), state.alias)
        used = state.alias[:-1] == torch.arange(NUM_SEATS)
        assert torch.equal(own_state.last_token[:-1].cpu()[used], state.last_token[:-1][used])
    return found


@pytest.mark.parametrize("vocab", [7, 64, 301, 1000])
def test_every_kind_of_row_gets_what_the_references_give(vocab):
    tables = neutral_tables(vocab)
    for seat, kind in enumerate(KINDS):
        if vocab > 20 or not {"edits", "history", "min_length"} & set(kind):
            give(tables, seat, **kind)
    seats = [*range(NUM_SEATS), NUM_SEATS, NUM_SEATS]
    for step in range(2):
        compare(random_logits(len(seats), vocab, seed=step), random.Random(step).sample(seats, len(seats)), tables)


def test_a_greedy_step_needs_no_parameters():
    logits = random_logits(5, 301, seed=1)
    logits[1, 5], logits[2, 7], logits[3] = torch.nan, torch.inf, -torch.inf
    found = compare(logits, [0, 1, 2, 3, NUM_SEATS], neutral_tables(301))
    assert found.bad.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_bad_rows_are_found_and_count_nothing(kind):
    tables = neutral_tables(301)
    for seat in range(3):
        give(tables, seat, **{**KINDS[kind], **({"lane": seat} if "lane" in KINDS[kind] else {})})
    logits = random_logits(3, 301, seed=kind)
    logits[0, 0], logits[1, 300] = torch.nan, torch.inf
    assert compare(logits, [0, 1, 2], tables).bad.tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_a_request_may_ask_for_anything_at_once(seed):
    """Random mixtures of all parameters, on scores that are all unlike, all equal or mostly equal."""
    choose = random.Random(seed)
    vocab = 150
    tables = neutral_tables(vocab)
    options = {
        "temperature": (0.3, 1.4), "top_k": (1, 2, 17, 149), "top_p": (0.01, 0.3, 0.5, 0.97), "min_p": (0.01, 0.4),
        "typical_p": (0.05, 0.5, 0.95), "logprobs": ("raw", "warped"), "num_top": (0, 1, 5),
        "edits": ([(1, 3.0)], [(i, -np.inf) for i in range(9)]),
    }  # fmt: skip
    for seat in range(NUM_SEATS):
        give(tables, seat, sample=True, **{n: choose.choice(v) for n, v in options.items() if choose.random() < 0.5})
    logits = random_logits(NUM_SEATS, vocab, seed)
    logits[3], logits[4], logits[5] = 1.0, logits[4].round(), (logits[5] > 0).float()
    compare(logits, list(range(NUM_SEATS)), tables)


def test_masks_leave_the_tokens_whose_bits_are_set():
    vocab = 100
    tables = neutral_tables(vocab)
    give(tables, 1, sample=True, top_p=0.8, logprobs="warped", num_top=3)
    masks = torch.randint(-(2**31), 2**31 - 1, (4, 4), generator=torch.Generator().manual_seed(5)).int()
    masks[3] = 0
    logits = random_logits(4, vocab, seed=3)
    found = compare(logits, [0, 1, NUM_SEATS, 2], tables, masks=masks)
    assert found.bad.tolist() == [False, False, False, True]


def test_seats_keep_their_tokens_and_bad_ones_die():
    tables = neutral_tables(70)
    give(tables, 1, sample=True, seed=4)
    state = SeatState(
        alias=torch.arange(NUM_SEATS + 1), last_token=torch.full((NUM_SEATS + 1,), 55), block_table=torch.zeros(1)
    )
    state.alias[4] = NUM_SEATS  # dead already
    logits = random_logits(6, 70, seed=9)
    logits[2, 3] = torch.nan
    found = compare(logits, [0, 1, 2, 4, NUM_SEATS, NUM_SEATS], tables, state)
    assert found.ids[2] == -1
    assert state.alias.tolist()[:5] == [0, 1, NUM_SEATS, 3, NUM_SEATS]


def test_a_row_does_not_depend_on_those_beside_it():
    tables = neutral_tables(301)
    for seat, kind in enumerate(KINDS):
        give(tables, seat, **kind)
    logits, positions = random_logits(NUM_SEATS, 301, seed=2), torch.full((NUM_SEATS,), 6)
    together = on_device(tables)
    rows = StepRows(torch.arange(NUM_SEATS).to(DEVICE), positions.to(DEVICE))
    every = sample_step(logits.to(DEVICE), rows, together, wanted(tables, slice(None)), poisoned(301))
    for seat in range(NUM_SEATS):
        row = StepRows(torch.tensor([seat]).to(DEVICE), positions[:1].to(DEVICE))
        own = [logits[seat : seat + 1].to(DEVICE), row, on_device(tables), wanted(tables, slice(seat, seat + 1))]
        alone = sample_step(*own, poisoned(301, max_rows=1))
        assert alone.ids[0] == every.ids[seat]
        count = int(tables.ints[IntLine.NUM_TOP, seat])
        if "logprobs" in KINDS[seat]:
            assert alone.logprobs.chosen[0] == every.logprobs.chosen[seat]
            assert torch.equal(alone.logprobs.top[0, :count], every.logprobs.top[seat, :count])


def test_slices_of_rows_are_sampled_one_after_another():
    tables = neutral_tables(90)
    give(tables, 1, sample=True, top_k=5)
    buffers = poisoned(90)
    buffers.slice_rows = 3
    logits, seats = random_logits(8, 90, seed=6), [1, 0, 1, 0, 1, 1, 0, 1]
    rows = StepRows(torch.tensor(seats).to(DEVICE), torch.arange(8).to(DEVICE))
    found = sample_step(logits.to(DEVICE), rows, on_device(tables), wanted(tables, seats), buffers)
    assert SampleBuffers((1000, 150_001, 1), torch.device("meta")).slice_rows % 16 == 0
    whole = StepRows(rows.seats.cpu(), rows.positions.cpu())
    assert found.ids.tolist() == sample_step_ref(logits, whole, tables).ids.tolist()


def test_draws_follow_the_probabilities():
    """600 of them, by the chi-square test."""
    tables = neutral_tables(20)
    for seat in range(NUM_SEATS):
        give(tables, seat, sample=True, min_p=0.03, seed=seat)
    logits = torch.linspace(2, -3, 20).expand(NUM_SEATS, -1).contiguous()
    seats, counts, there, buffers = torch.arange(NUM_SEATS).to(DEVICE), torch.zeros(20), on_device(tables), poisoned(20)
    for position in range(50):
        rows = StepRows(seats, torch.full((NUM_SEATS,), position).to(DEVICE))
        found = sample_step(logits.to(DEVICE), rows, there, wanted(tables, slice(None)), buffers)
        counts += torch.bincount(found.ids.cpu(), minlength=20)
    probs = torch.softmax(logits[0].double(), 0)
    probs[probs < 0.03 * probs.max()] = 0
    kept = probs > 0
    assert counts.sum() == 600
    assert not counts[~kept].any()
    assert stats.chisquare(counts[kept].numpy(), (600 * probs / probs.sum())[kept].numpy()).pvalue > 1e-4


def test_ids_are_banned_until_the_answer_is_long_enough():
    tables = neutral_tables(100)
    for seat in range(4):
        give(tables, seat, min_length=[(50, -np.inf)], min_new=2)
    logits = torch.zeros(4, 100)
    logits[:, 50] = 3
    assert compare(logits, [0, 1, 2, 3], tables).ids.tolist() == [0, 0, 50, 50]
