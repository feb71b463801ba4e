"""Warm-up: it runs the sizes, leaves nothing behind, and sees whether rows depend on one another."""

import pytest
import torch
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference

from penstock_server.plan_encoding import PlanDraft, PlanRow
from penstock_server.row_status import RowStatus
from penstock_server.warmup import PROMPT_TOKENS, measure_steps, warm_sizes, warm_up

REFERENCE = IntegerReference()


@pytest.fixture
def model(tmp_path):
    return integer_model(REFERENCE, tmp_path)


def test_it_runs_every_size_and_leaves_the_engine_clear(model):
    engine = LocalEngine(model, EngineSizes(), inline=True)
    shapes, fractions = set(), []
    forward = model.forward

    def watched(batch, kv):
        shapes.add((len(batch.token_ids), len(batch.attention.seq_lens)))
        return forward(batch, kv)

    model.forward = watched
    assert warm_up(engine.engine, "cpu", fractions.append)
    assert {(size, size) for size in (1, 2, 4, 8, 16, 32)} <= shapes
    assert {(size, 1) for size in (8, 16, 32, 48, 64)} <= shapes
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    rows = engine.run(PlanDraft(rows=[PlanRow(seat) for seat in range(8)])).rows
    assert {row.status for row in rows} == {RowStatus.DEAD}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_several_ranks_capture_every_size_together_and_one_leaves_mixed_steps_to_idle_times(model, num_ranks):
    engine = LocalEngine(model, EngineSizes(), inline=True)
    engine.replay_steps()
    engine.parts.parallel.size = num_ranks
    engine.parts.parallel.broadcast = lambda ids: ids
    assert warm_up(engine.engine, "cuda", lambda fraction: None)
    sizes = warm_sizes(engine.limits, "cuda")
    captured = sizes if num_ranks > 1 else [size for size in sizes if size[1]]
    assert engine.engine._runner.graphs.num_captured == len(captured)
    assert engine.engine.has_idle_work == (num_ranks == 1)


@pytest.mark.parametrize(
    "sizes",
    [
        EngineSizes(num_seats=1, max_rows=1, max_tokens=1, max_seq_len=2, num_blocks=2),
        EngineSizes(num_seats=4, max_rows=4, max_tokens=4, max_seq_len=3, num_blocks=2, tokens_per_block=1),
        EngineSizes(tokens_per_block=1, max_seq_len=5, num_blocks=3),
        EngineSizes(tokens_per_block=256, max_seq_len=300, num_blocks=2),
    ],
)
def test_the_smallest_shards_can_be_warmed(model, sizes):
    engine = LocalEngine(model, sizes, inline=True)
    assert not warm_up(engine.engine, "cpu", lambda fraction: None), "too small to compare rows"


def test_rows_that_depend_on_their_neighbours_are_noticed(model):
    engine = LocalEngine(model, EngineSizes(), inline=True)
    logits = model.logits
    model.logits = lambda hidden: logits(hidden) * (1 + 1e-6 * hidden.shape[0])
    assert not warm_up(engine.engine, "cpu", lambda fraction: None)


def test_rows_that_depend_on_how_their_prompt_is_cut_are_noticed(model):
    engine = LocalEngine(model, EngineSizes(), inline=True)
    forward, logits, longest = model.forward, model.logits, []

    def watched(batch, kv):
        longest.append(int(batch.attention.host_query_lens.max()))
        return forward(batch, kv)

    model.forward = watched
    # As attention whose sums depend on where a chunk begins: the prompts of the comparison with a batch all agree.
    model.logits = lambda hidden: logits(hidden) * (1 + 1e-6 * (longest[-1] if longest[-1] > PROMPT_TOKENS else 0))
    assert not warm_up(engine.engine, "cpu", lambda fraction: None)
    assert max(longest) > 64, "a realistic prompt is longer than the tiles of attention"


def test_steps_are_measured_in_the_largest_of_each_kind(model, monkeypatch):
    engine = LocalEngine(model, EngineSizes(num_blocks=2), inline=True)
    engine.replay_steps()
    steps, forward = [], model.forward

    def watched(batch, kv):
        steps.append(len(batch.token_ids))
        return forward(batch, kv)

    model.forward = watched
    # What torch holds grows with the steps.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000 + sum(steps))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    taken = measure_steps(engine.engine, torch.device("cpu"))
    assert steps == [96, 32, 32, 32, 64, 64]
    logits_of_smaller_sizes = (1 + 2 + 4 + 8 + 16) * REFERENCE.vocab_size * 4
    assert taken == sum(steps) + logits_of_smaller_sizes
