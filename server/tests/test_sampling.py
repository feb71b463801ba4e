"""The sampler: stages by seat, penalty lanes over steps, the same tokens in any batch, no waiting for the device."""

import numpy as np
import pytest
import torch
from scipy import stats
from shard_testkit.sampling import (
    CPU,
    PROMPT_LEN,
    VOCAB,
    Request,
    mixture,
    random_logits,
    registrations,
    rows_of,
    sampler_of,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation import logits_process as reference

from penstock_server import sampling
from penstock_server.sampling import Sampler
from penstock_server.seat_params import EditTable, ragged_index

INF, NAN = torch.inf, torch.nan


def test_greedy_equals_argmax_and_leaves_the_logits():
    logits = random_logits(5)
    before = logits.clone()
    output = sampler_of([Request()] * 5).sample(logits, rows_of([0, 1, 2, 3, 80]))
    assert torch.equal(output.ids, logits.argmax(1))
    assert not output.bad.any()
    assert output.logprobs is None
    sampler_of(mixture(18)).sample(logits, rows_of([4, 3, 2, 6, 8]))
    assert torch.equal(logits, before)


@pytest.fixture(params=[False, True], ids=["rows", "all rows"], autouse=True)
def all_rows(request, monkeypatch):
    """Both ways of running a stage: on the rows that need it, and on all of them, as on a device that is no CPU."""
    if request.param:
        monkeypatch.setattr(sampling, "host_rows", lambda wanted, device: None)


def position_of(index: int, step: int) -> int:
    """Requests are at different places of their answers."""
    return PROMPT_LEN + index % 3 + step


@pytest.mark.parametrize("size", [10, 31, 64, 70])
def test_a_request_gets_the_same_tokens_alone_and_in_any_batch(size):
    """Over five steps, so that what lanes counted matters; padding, order and slices of the batch differ."""
    requests, logits = mixture(size), [random_logits(size, seed=step) for step in range(5)]
    crowd, order = sampler_of(requests), np.random.default_rng(size).permutation(size).tolist()
    crowded = []
    for step in range(5):
        padded = torch.cat((logits[step][order], torch.full((3, VOCAB), NAN)))
        positions = [*(position_of(index, step) for index in order), 0, 0, 0]
        crowded.append(crowd.sample(padded, rows_of([*order, 80, 80, 80], positions)))
    for index in range(size):
        alone, row = sampler_of({7: requests[index]}), order.index(index)
        for step in range(5):
            output = alone.sample(logits[step][index : index + 1], rows_of([7], position_of(index, step)))
            assert output.ids[0] == crowded[step].ids[row]
            num_top = requests[index].num_top
            if requests[index].logprobs:
                found, expected = output.logprobs, crowded[step].logprobs
                assert torch.equal(found.chosen[0], expected.chosen[row])
                assert torch.equal(found.top_ids[0, :num_top], expected.top_ids[row, :num_top])
                assert torch.equal(found.top[0, :num_top], expected.top[row, :num_top])


def test_seed_fork_and_position_change_the_tokens_and_nothing_else_does():
    logits = torch.zeros((1, VOCAB))

    def tokens(sampler: Sampler, seat: int) -> list[int]:
        return [int(sampler.sample(logits, rows_of([seat], position)).ids[0]) for position in range(4, 20)]

    requests = [Request(do_sample=True, seed=seed, fork=fork) for seed in (5, 6, 5 + (1 << 32)) for fork in (0, 1)]
    series = [tokens(sampler_of(requests), seat) for seat in range(6)]
    assert len({tuple(ids) for ids in series}) == 6
    assert all(len(set(ids)) > 8 for ids in series)
    assert tokens(sampler_of({33: requests[0]}), 33) == series[0]


def test_20000_draws_through_the_sampler_follow_the_warped_probabilities():
    logits = torch.linspace(2, -3, 40)
    requests = [Request(do_sample=True, temperature=0.8, top_k=30, seed=seed) for seed in range(32)]
    sampler, counts = sampler_of(requests, vocab=40), torch.zeros(40, dtype=torch.int64)
    for position in range(625):
        output = sampler.sample(logits.expand(32, -1), rows_of(list(range(32)), position))
        counts += torch.bincount(output.ids, minlength=40)
    assert counts.sum() == 20_000
    assert not counts[30:].any()
    expected = torch.softmax(logits[:30].double() / 0.8, 0) * 20_000
    assert stats.chisquare(counts[:30].numpy(), expected.numpy()).pvalue > 1e-4


def test_penalties_follow_a_naive_count_over_steps():
    """Greedy with all three penalties; a registration that brings half of the answer continues like the original."""
    prompt, generated = [3, 3, 8, 12], []
    logits = [random_logits(1, seed=step) * 0.5 for step in range(12)]

    def naive(row: torch.Tensor) -> int:
        row = reference.RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([prompt + generated]), row[None])[0].clone()
        for token in set(generated):
            row[token] = row[token] - generated.count(token) * 0.75 - 0.5
        return int(row.argmax())

    # Steps repeat their logits in pairs, so that a token is wanted again.
    request = {"lane": 2, "repetition": 1.4, "frequency": 0.75, "presence": 0.5}
    sampler = sampler_of({5: Request(**request, history=(3, 3, 8, 12))})
    for step in range(12):
        expected = naive(logits[step // 3][0])
        found = int(sampler.sample(logits[step // 3], rows_of([5], PROMPT_LEN + step)).ids[0])
        assert found == expected
        generated.append(found)
        if step == 5:
            sampler.release(np.array([5]))
            history = (*prompt, *generated)
            sampler.register(registrations({9: Request(lane=0, history=(1,), repetition=2.0)}))
            sampler = sampler_of({5: Request(**{**request, "lane": 39}, history=history, num_generated=len(generated))})
    assert len(set(generated)) > 4


def test_a_lane_given_to_another_request_starts_afresh_and_a_released_seat_touches_no_lane():
    sampler, logits = sampler_of({0: Request(lane=0, repetition=5.0)}), torch.ones((1, VOCAB))
    assert [int(sampler.sample(logits, rows_of([0])).ids[0]) for _ in range(3)] == [0, 1, 2]
    sampler.release(np.array([0]))
    sampler.register(registrations({1: Request(lane=0, repetition=5.0, history=(0,))}))
    both = sampler.sample(logits.expand(2, -1), rows_of([0, 1]))
    assert both.ids.tolist() == [0, 1]
    assert sampler.sample(logits, rows_of([1])).ids.tolist() == [2]
    sampler.clear()
    assert sampler.sample(logits, rows_of([1])).ids.tolist() == [0]


def test_a_released_seat_is_greedy():
    sampler, logits = sampler_of([Request(banned=(7,)), Request(do_sample=True, seed=3)]), torch.zeros((2, VOCAB))
    logits[:, 7] = 1
    assert 7 not in sampler.sample(logits, rows_of([0, 1])).ids.tolist()
    sampler.release(np.array([0, 1]))
    assert sampler.sample(logits, rows_of([0, 1])).ids.tolist() == [7, 7]


def test_frequency_and_presence_count_the_generated_part_of_the_history_only():
    history = (0, 0, 1, 2, 1, 3)  # the last two were generated
    requests = [
        Request(lane=lane, history=history, num_generated=2, **penalty)
        for lane, penalty in enumerate(({"frequency": 1.0}, {"presence": 1.0}, {"repetition": 2.0}))
    ]
    logits = torch.tensor([[1.0, 1.5, 1.1, 1.3, 0.9]]).expand(3, -1)
    # Penalised: 1 and 3; 1 and 3; all of the first four.
    assert sampler_of(requests, vocab=5).sample(logits, rows_of([0, 1, 2])).ids.tolist() == [2, 2, 4]


def test_a_bad_row_counts_nothing():
    sampler, logits = sampler_of({0: Request(lane=0, repetition=5.0)}), torch.ones((1, VOCAB))
    assert sampler.sample(logits * NAN, rows_of([0])).bad.all()
    assert sampler.sample(logits, rows_of([0])).ids.tolist() == [0]


def test_bias_bans_and_minimum_length():
    logits = torch.zeros((3, VOCAB))
    logits[:, 10], logits[:, 20], logits[:, 30] = 3, 2, 1
    requests = [
        Request(bias={30: 2.5, 0: -100.0, 77: 0.0}),
        Request(banned=(10, 20)),
        Request(min_length_ids=(10,), min_new=2, banned=(20,)),
    ]
    sampler = sampler_of(requests)
    answers = [sampler.sample(logits, rows_of([0, 1, 2], position)).ids.tolist() for position in (4, 5, 6, 7)]
    assert answers == [[30, 30, 30], [30, 30, 30], [30, 30, 10], [30, 30, 10]]
    banned = reference.MinNewTokensLengthLogitsProcessor(PROMPT_LEN, 2, [10])
    for length, expected in ((4, True), (5, True), (6, False)):
        assert (banned(torch.zeros((1, length)), logits[2:])[0, 10] == -INF) == expected


def test_a_wider_list_of_edits_keeps_the_narrower_ones():
    table = EditTable(3, CPU)
    table.write(np.array([0]), np.array([1]), np.array([5], np.int32), -2.0)
    table.write(np.array([2]), np.array([7]), np.arange(7, dtype=np.int32), np.arange(7, dtype=np.float32))
    assert table.ids[0, 0] == 5
    assert table.values[0].tolist() == [-2.0] + [0.0] * 6
    assert table.values[0, 1:].signbit().all()
    assert table.values[2].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [table.width(np.array(seats, np.int64)) for seats in ([0], [0, 2], [1], [])] == [1, 7, 1, 1]


class EditWidths(TorchDispatchMode):
    """Records how many edits of each row are added to its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "scatter_add_":
            self.widths.append(args[2].numel() // 2)
        return func(*args, **(kwargs or {}))


def test_a_step_adds_as_many_edits_as_its_rows_have():
    """Not as many as the longest list that any seat ever had."""
    short = {"bias": {3: 9.0, 5: 1.0}, "min_length_ids": (7,), "min_new": 9}
    long = {"bias": dict.fromkeys(range(200), 1.0), "min_length_ids": tuple(range(100)), "min_new": 9}
    sampler, logits = sampler_of([Request(**short), Request(**long), Request(**long), Request()]), random_logits(2)

    def widths(*seats: int) -> list[int]:
        with EditWidths() as watch:
            sampler.sample(logits, rows_of(list(seats)))
        return watch.widths

    assert widths(0, 1) == [200, 100]
    assert widths(0, 0) == [2, 1]
    sampler.release(np.array([1]))
    sampler.register(registrations({1: Request(**short)}))
    assert widths(0, 1) == [2, 1]
    found = sampler.sample(torch.zeros((2, VOCAB)), rows_of([0, 1]))
    assert found.ids.tolist() == [3, 3]


def test_ragged_index_names_list_and_place():
    record, entry = ragged_index(np.array([2, 0, 3]))
    assert record.tolist() == [0, 0, 2, 2, 2]
    assert entry.tolist() == [0, 1, 0, 1, 2]


def test_logprobs_raw_and_warped():
    logits = random_logits(4)
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 5, "logprobs": True, "num_top": 4}
    unused = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.3, "typical_p": 0.5}  # greedy rows warp nothing
    greedy = Request(logprobs=True, lane=0, repetition=1.5, history=(1, 2, 3, 4), **unused)
    requests = [Request(**settings), Request(**settings, raw=True), greedy, Request()]
    output = sampler_of(requests).sample(logits, rows_of([0, 1, 2, 3]))
    penalised = reference.RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[1, 2, 3, 4]]), logits[2:3])[0]
    top5 = logits[0].topk(5)
    warped = torch.full((VOCAB,), -INF).scatter(0, top5.indices, top5.values / 0.5)
    sources = [warped, logits[1], penalised]
    for row, source in enumerate(sources):
        logs = torch.log_softmax(source, 0)
        torch.testing.assert_close(output.logprobs.chosen[row], logs[output.ids[row]], atol=1e-5, rtol=0)
        best = logs.topk(4)
        if requests[row].num_top:
            assert torch.equal(output.logprobs.top_ids[row], best.indices)
            torch.testing.assert_close(output.logprobs.top[row], best.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_a_bad_row_is_flagged_and_harms_no_other(poison):
    requests = mixture(36)
    seats, clean, dirty = list(range(36)), sampler_of(requests), sampler_of(requests)
    for step in range(3):
        logits = random_logits(36, seed=step)
        spoilt = logits.clone()
        spoilt[3:12] = poison
        expected, found = clean.sample(logits, rows_of(seats)), dirty.sample(spoilt, rows_of(seats))
        good = torch.ones(36, dtype=torch.bool)
        good[3:12] = False
        assert torch.equal(found.bad, ~good)
        assert torch.equal(found.ids[good], expected.ids[good])
        assert not found.ids[3:12].any()
        assert torch.equal(found.logprobs.chosen[good], expected.logprobs.chosen[good])


@pytest.mark.parametrize("kind", range(10))
def test_a_single_nan_is_found_wherever_it_hides(kind):
    request, logits = mixture(10)[kind], random_logits(2)
    logits[0, 1] = NAN  # banned in some requests
    output = sampler_of({0: request, 1: Request()}).sample(logits, rows_of([0, 1]))
    assert output.bad.tolist() == [True, False]


def test_a_row_with_everything_banned_is_bad():
    output = sampler_of([Request(banned=tuple(range(VOCAB)))]).sample(random_logits(1), rows_of([0]))
    assert output.bad.tolist() == [True]
    assert output.ids.tolist() == [0]


class Watch(TorchDispatchMode):
    """Records every operation, and refuses those that wait for a device or whose shapes depend on data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        if name.startswith("index") or name.startswith("_index"):
            tensors = [item for arg in args for item in (arg if isinstance(arg, list) else [arg])][1:]
            assert not any(isinstance(item, torch.Tensor) and item.dtype == torch.bool for item in tensors[:1]), name
        self.operations.append(name)
        return func(*args, **(kwargs or {}))


def operations(requests: list[Request]) -> list[str]:
    sampler, logits = sampler_of(requests), random_logits(len(requests))
    rows = rows_of(list(range(len(requests))))
    sampler.sample(logits, rows)  # constants are made on first use
    with Watch() as watch:
        sampler.sample(logits, rows)
    return watch.operations


def test_sampling_waits_for_nothing_and_dispatches_the_same_operations_at_every_size():
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95}
    everything = {**settings, "bias": {1: 2.0}, "min_length_ids": (1,), "min_new": 2, "logprobs": True, "num_top": 2}
    for options in ({}, {"do_sample": True}, settings, everything, {**everything, "raw": True}):
        sizes = [operations([Request(**options, lane=row) for row in range(size)]) for size in (1, 8, 32)]
        assert sizes[0] == sizes[1] == sizes[2]
    penalties = {"repetition": 1.2, "frequency": 0.1, "presence": 0.1}
    sizes = [operations([Request(lane=row, **everything, **penalties) for row in range(size)]) for size in (1, 8, 32)]
    assert sizes[0] == sizes[1] == sizes[2]
    mixtures = [operations(mixture(10) * times) for times in (1, 2, 3)]
    assert len({len(names) for names in mixtures}) == 1


def test_a_greedy_step_is_four_operations_and_stages_that_nobody_needs_are_not_launched():
    assert len(operations([Request()] * 8)) <= 6
    names = operations([Request(do_sample=True)] * 8)
    assert names.count("_softmax") + names.count("softmax") == 1
    assert not {"div_", "topk", "scatter_add_", "log_softmax"} & set(names)
    assert operations([Request(lane=3)] * 8) == operations([Request()] * 8)
