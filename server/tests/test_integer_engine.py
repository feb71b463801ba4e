"""The integer model in the engine of this process: exact at every chunk size and depth, whatever else is going on."""

import pytest
import torch
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference
from shard_testkit.scheduler import Request, TestScheduler, World, check_answers, make_requests

from penstock_server.warmup import warm_sizes

REFERENCE = IntegerReference()


def drive(
    tmp_path,
    requests: list[Request],
    sizes: EngineSizes,
    chunk: int,
    preempt_share: float = 0.0,
    before=lambda engine: None,
):
    engine = LocalEngine(integer_model(REFERENCE, tmp_path), sizes)
    before(engine)
    world = World(
        num_seats=sizes.num_seats,
        num_blocks=sizes.num_blocks,
        tokens_per_block=sizes.tokens_per_block,
        max_rows=sizes.max_rows,
        max_tokens=sizes.max_tokens,
        depth=sizes.depth,
        chunk=chunk,
        preempt_share=preempt_share,
    )
    scheduler = TestScheduler(world, REFERENCE, engine.submit, engine.receive, seed=chunk)
    try:
        scheduler.run(requests)
    finally:
        engine.close()
    check_answers(REFERENCE, requests)
    return scheduler


def test_the_reference_agrees_with_its_definition():
    prompt = [5, 0, 17]
    answer = REFERENCE.generate(prompt, 6)
    assert answer == [REFERENCE.next_token(prompt + answer[:count]) for count in range(6)]


@pytest.mark.parametrize("chunk", range(1, 65))
def test_every_chunk_size(tmp_path, chunk):
    requests = make_requests(REFERENCE, 10, seed=chunk, longest=70)
    drive(tmp_path, requests, EngineSizes(max_tokens=64 + 8), chunk)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_two_hundred_streams(tmp_path, depth):
    requests = make_requests(REFERENCE, 200, seed=depth)
    scheduler = drive(tmp_path, requests, EngineSizes(depth=depth), chunk=17, preempt_share=0.2)
    assert sum(request.left for request in requests) > 30
    assert sum(request.failed is not None for request in requests) == 25
    assert scheduler.num_preempted > 5


def test_a_steady_batch_repeats_its_rows(tmp_path):
    requests = [Request([index + 1], num_new=40) for index in range(8)]
    scheduler = drive(tmp_path, requests, EngineSizes(), chunk=8)
    assert scheduler.num_same_rows > 10


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replayed_steps_are_exact_whatever_their_mix_of_rows(tmp_path, seed):
    """Prompts of all lengths beside decode rows, in steps that were captured with other rows."""
    engines = []

    def capture_all(engine):
        engine.replay_steps()
        engine.warm_up()
        while engine.engine.has_idle_work:
            engine.engine.use_idle_time(lambda: False)
        engines.append((engine.engine, engine.engine.num_replays, engine.engine._runner.graphs.num_captured))

    requests = make_requests(REFERENCE, 80, seed=seed)
    drive(tmp_path, requests, EngineSizes(), chunk=4 * seed + 5, preempt_share=0.2, before=capture_all)
    engine, num_before, num_captured = engines[0]
    assert num_captured == len(warm_sizes(engine.limits, "cpu")) > 10
    assert engine.num_replays - num_before > 50


def test_a_capture_gives_way_to_a_plan_and_is_tried_again(tmp_path):
    engine = LocalEngine(integer_model(REFERENCE, tmp_path), EngineSizes())
    engine.replay_steps()
    engine.warm_up()
    graphs, before, looks = engine.engine._runner.graphs, engine.engine._runner.graphs.num_captured, []
    engine.engine.use_idle_time(lambda: bool(looks) or looks.append(1))
    assert graphs.num_captured == before
    assert engine.engine.has_idle_work
    engine.engine.use_idle_time(lambda: False)
    assert graphs.num_captured == before + 1
    engine.close()


def test_no_memory_for_a_graph_is_no_failure(tmp_path, monkeypatch):
    engine = LocalEngine(integer_model(REFERENCE, tmp_path), EngineSizes())
    engine.replay_steps()
    engine.warm_up()

    def fail(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine.engine._runner.graphs, "_capture", fail)
    engine.engine.use_idle_time(lambda: False)
    assert not engine.engine.has_idle_work
    engine.close()
