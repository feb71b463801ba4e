"""The parts of sampling against their references: random numbers, cuts, draws, edits, penalties, log-probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from penstock_kernels.logprobs import logprobs, logprobs_ref
from penstock_kernels.mass_cut import mass_cut, mass_cut_ref, ordered_keys
from penstock_kernels.penalties import (
    IN_PROMPT,
    NEUTRAL_EDIT,
    ONE_GENERATED,
    add_at,
    add_at_ref,
    count_tokens,
    count_tokens_ref,
    penalize_counts,
    penalize_counts_ref,
    penalize_repetition,
    penalize_repetition_ref,
)
from penstock_kernels.philox import WORD, Purpose, philox, philox_ref, uniform, uniform_ref
from penstock_kernels.sample import draw, draw_ref, greedy, greedy_ref, host_rows
from penstock_kernels.sample_workspace import SLICE_ROWS, SampleWorkspace

CPU = torch.device("cpu")
INF, NAN = torch.inf, torch.nan
words = st.integers(0, WORD)

# The vectors of philox4x32-10 in kat_vectors of Random123 (D. E. Shaw Research): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def poisoned(vocab_size: int) -> SampleWorkspace:
    """A workspace whose buffers hold nonsense, so that reading before writing shows."""
    workspace = SampleWorkspace(vocab_size, CPU)
    for name in ("scores", "subset", "probs"):
        getattr(workspace, name).fill_(NAN)
    for name in ("keys", "digits", "weights", "index"):
        getattr(workspace, name).fill_(-12345)
    return workspace


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Normal logits of scale 3, a quarter of them equal to others."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((num_rows, vocab_size), generator=generator) * 3
    return torch.where(torch.rand(logits.shape, generator=generator) < 0.25, logits.round(), logits)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert philox_ref(counter, key) == expected
    assert philox(torch.tensor(counter)[:, None], torch.tensor(key)[:, None])[:, 0].tolist() == list(expected)


@given(st.lists(st.tuples(words, words, words, words, words, words), min_size=1, max_size=9))
def test_philox_equals_its_reference(rows):
    columns = torch.tensor(rows).T
    expected = [list(philox_ref(row[:4], row[4:])) for row in rows]
    assert philox(columns[:4], columns[4:]).T.tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), words, words), min_size=1, max_size=9))
def test_uniform_equals_its_reference(rows):
    seeds, forks, positions = zip(*rows, strict=True)
    key = torch.tensor([[seed & WORD for seed in seeds], [seed >> 32 for seed in seeds]])
    found = uniform(key, torch.tensor(forks), torch.tensor(positions), Purpose.SAMPLE).tolist()
    assert found == [uniform_ref(*row, Purpose.SAMPLE) for row in rows]
    assert all(0 <= number < 1 for number in found)


def test_uniform_numbers_are_uniform_and_every_coordinate_matters():
    ones = torch.ones(20_000, dtype=torch.int64)
    steps = torch.arange(20_000)
    zeros = torch.zeros_like(ones)
    series = {
        "position": uniform(torch.stack((zeros, zeros)), zeros, steps, Purpose.SAMPLE),
        "fork": uniform(torch.stack((zeros, zeros)), steps, ones, Purpose.SAMPLE),
        "seed low": uniform(torch.stack((steps, zeros)), zeros, ones, Purpose.SAMPLE),
        "seed high": uniform(torch.stack((zeros, steps)), zeros, ones, Purpose.SAMPLE),
    }
    for name, numbers in series.items():
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-4, name
    assert len({tuple(numbers[2:6].tolist()) for numbers in series.values()}) == 4


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 300))
def test_mass_cut_equals_sorting(seed, num_rows, vocab_size):
    values = random_logits(num_rows, vocab_size, seed)
    values[0, ::3] = -INF
    values[-1, ::4] = INF
    draw_from = np.random.default_rng(seed)
    weights = torch.from_numpy(draw_from.integers(1, 2**53, (num_rows, vocab_size)))
    # Now and then below every sum or above it.
    limit = (weights.sum(1).double() * torch.from_numpy(draw_from.uniform(-0.1, 1.1, num_rows))).long()
    workspace = poisoned(vocab_size)
    found = mass_cut(ordered_keys(values, workspace), weights, limit, workspace)
    expected = mass_cut_ref(values, weights, limit)
    assert torch.equal(found.value, expected.value)
    inside = (limit >= 0) & (limit < weights.sum(1))
    assert torch.equal(found.remaining[inside], expected.remaining[inside])
    assert torch.equal(found.weight[inside], expected.weight[inside])


def test_mass_cut_by_counts():
    values = torch.tensor([[3.0, -0.0, 0.0, -INF, -3.0, 1e-45, -1e-45, 3e38]])
    workspace = poisoned(8)
    for limit, expected in enumerate(sorted(values[0].tolist())):
        cut = mass_cut(ordered_keys(values, workspace), workspace.one, torch.tensor([limit]), workspace)
        assert cut.value.item() == expected
        assert cut.weight.item() == (values == expected).sum()
        assert cut.remaining.item() == limit - (values < expected).sum()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_keys_have_the_order_of_their_floats(values):
    floats = torch.tensor([values])
    keys = ordered_keys(floats, SampleWorkspace(len(values), CPU))[0]
    assert torch.equal(keys[:, None] < keys, floats[0][:, None] < floats[0])
    assert torch.equal(keys[:, None] == keys, floats[0][:, None] == floats[0])


def test_greedy_equals_its_reference():
    scores = random_logits(9, 100)
    scores[0, [7, 70]] = 50  # equal
    scores[1] = 0
    scores[2, 3], scores[3, 4], scores[4], scores[5, 0] = NAN, INF, -INF, -INF
    for found, expected in zip(greedy(scores), greedy_ref(scores), strict=True):
        assert torch.equal(found, expected)
    assert greedy(scores)[1].tolist() == [False, False, True, True, True, False, False, False, False]


def test_draw_equals_its_reference():
    scores = random_logits(SLICE_ROWS, 500)
    scores[:8, 100:] = -INF
    numbers = torch.rand(SLICE_ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = draw(scores, numbers, poisoned(500)), draw_ref(scores, numbers)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_draw_never_leaves_the_tokens_that_can_come():
    scores = torch.full((6, 64), -INF)
    scores[:, 20], scores[:, 40] = 1.0, -200.0  # exp(-201) is 0 in float32
    numbers = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-30, 1 - 2.0**-53, 0.25], dtype=torch.float64)
    ids, bad = draw(scores, numbers, poisoned(64))
    assert ids.tolist() == [20] * 6
    assert not bad.any()
    flat = torch.zeros((2, 49_153))
    assert draw(flat, numbers[[0, 4]], poisoned(49_153))[0].tolist() == [0, 49_152]


@pytest.mark.parametrize("vocab_size", [333, 50_001])
def test_draws_and_logprobs_have_the_same_bits_alone_and_together(vocab_size):
    scores = random_logits(SLICE_ROWS, vocab_size)
    numbers = torch.rand(SLICE_ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    workspace = poisoned(vocab_size)
    ids, _ = draw(scores, numbers, workspace)
    together = logprobs(scores, ids, 3, workspace)
    for row in range(0, SLICE_ROWS, 5):
        alone = slice(row, row + 1)
        assert draw(scores[alone], numbers[alone], workspace)[0] == ids[row]
        for part, expected in zip(logprobs(scores[alone], ids[alone], 3, workspace), together, strict=True):
            assert torch.equal(part[0], expected[row])


def test_draw_flags_rows_without_probabilities_only():
    scores = random_logits(5, 100)
    numbers = torch.full((5,), 0.5, dtype=torch.float64)
    clean = draw(scores, numbers, poisoned(100))[0]
    scores[1, 3], scores[2], scores[3, 9] = NAN, -INF, INF
    ids, bad = draw(scores, numbers, poisoned(100))
    assert bad.tolist() == [False, True, True, True, False]
    assert ids[[0, 4]].tolist() == clean[[0, 4]].tolist()
    assert ((ids >= 0) & (ids < 100)).all()


def test_20000_seeded_draws_follow_the_probabilities():
    logits = torch.linspace(2, -4, 40)
    logits[7] = -INF
    counts, workspace = torch.zeros(40, dtype=torch.int64), SampleWorkspace(40, CPU)
    seeds = torch.arange(20_000)
    numbers = uniform(torch.stack((seeds, 7 * seeds)), torch.zeros_like(seeds), seeds % 11, Purpose.SAMPLE)
    for part in numbers.split(SLICE_ROWS):
        ids, _ = draw(logits.expand(len(part), -1), part, workspace)
        counts += torch.bincount(ids, minlength=40)
    assert counts[7] == 0
    possible = logits > -INF
    expected = torch.softmax(logits.double(), 0)[possible] * 20_000
    assert stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-4


def test_edits_equal_their_reference():
    scores = random_logits(4, 30)
    ids = torch.tensor([[3, 9, 0], [29, 0, 0]])
    values = torch.tensor([[1.5, -INF, NEUTRAL_EDIT], [-100.0, NEUTRAL_EDIT, NEUTRAL_EDIT]])
    expected = scores.clone()
    add_at_ref(expected[1:3], ids, values)
    found = scores.clone()
    add_at(found, torch.tensor([1, 2]), ids, values)
    assert torch.equal(found, expected)
    every = scores[1:3].clone()
    add_at(every, None, ids, values)
    assert torch.equal(every, expected[1:3])


def test_padding_of_edits_changes_no_bit():
    scores = torch.tensor([[-0.0, 1.0]])
    add_at(scores, None, torch.zeros((1, 4), dtype=torch.int64), torch.full((1, 4), NEUTRAL_EDIT))
    assert math.copysign(1, scores[0, 0].item()) == -1


def random_history(num_rows: int, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(0, 9, (num_rows, vocab_size), generator=generator, dtype=torch.int32)
    return torch.where(torch.rand(history.shape, generator=generator) < 0.5, 0, history).int()


def test_penalties_equal_their_references():
    scores, history = random_logits(5, 200), random_history(5, 200)
    scores[4, ::2] = -INF
    repetition = torch.tensor([1.0, 1.3, 0.7, 2.0, 1.2])
    frequency, presence = torch.tensor([0.0, 0.5, -1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 0.3, -0.4, 1.0])
    expected, found, workspace = scores.clone(), scores.clone(), poisoned(200)
    penalize_repetition_ref(expected, history, repetition)
    penalize_repetition(found, history, repetition, workspace)
    assert torch.equal(found, expected)
    penalize_counts_ref(expected, history, frequency, presence)
    penalize_counts(found, history.clone(), frequency, presence, workspace)
    assert torch.equal(found, expected)
    assert torch.equal(found[0], scores[0])  # neutral


def test_counting_equals_its_reference():
    history = random_history(3, 20)
    history[0, 4] = IN_PROMPT
    lanes, ids = torch.tensor([2, 0, 1, 2]), torch.tensor([5, 4, 19, 5])
    counted = torch.tensor([True, True, False, True])
    expected = history.clone()
    count_tokens_ref(expected, lanes, ids, counted)
    count_tokens(history, lanes, ids, counted)
    assert torch.equal(history, expected)
    assert history[0, 4] == IN_PROMPT + ONE_GENERATED


@pytest.mark.parametrize("num_top", [0, 1, 5, 60])
def test_logprobs_equal_their_reference(num_top):
    scores = random_logits(6, 60)
    scores[2] = 0
    scores[3, 10:] = -INF
    ids = torch.tensor([0, 59, 3, 4, 30, 8])
    found, expected = logprobs(scores, ids, num_top, poisoned(60)), logprobs_ref(scores, ids, num_top)
    assert torch.equal(found.top_ids, expected.top_ids)
    torch.testing.assert_close(found.chosen, expected.chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.top, expected.top, atol=1e-5, rtol=0)


def test_top_logprobs_are_a_prefix_of_more_of_them():
    scores = random_logits(4, 500).round()
    ids = torch.zeros(4, dtype=torch.int64)
    more = logprobs(scores, ids, 20, poisoned(500))
    for num_top in (1, 5, 11):
        fewer = logprobs(scores, ids, num_top, poisoned(500))
        assert torch.equal(fewer.top_ids, more.top_ids[:, :num_top])
        assert torch.equal(fewer.top, more.top[:, :num_top])


def test_host_rows_are_named_only_where_that_saves_something():
    assert host_rows(np.array([True, False, True]), CPU).tolist() == [0, 2]
    assert host_rows(np.array([True, True]), CPU) is None
    assert host_rows(np.array([True, False]), torch.device("meta")) is None
