"""The engine on a GPU: exact with the integer model, parity with transformers, captured graphs, no waiting."""

import warnings

import pytest
import torch
from model_testkit.paged import PagedModel
from model_testkit.parity import Output, check_parity
from model_testkit.tiny_llama import CASES, load_reference, reference_logits, save
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.generation import generate
from shard_testkit.integer import IntegerReference
from shard_testkit.scheduler import TestScheduler, World, check_answers, make_requests

from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag
from penstock_server.row_status import RowStatus
from penstock_server.warmup import warm_sizes

pytestmark = pytest.mark.gpu

REFERENCE = IntegerReference()
LLAMA_SIZES = EngineSizes(tokens_per_block=16, max_tokens=256)


def token_ids(count, seed=0, vocab_size=131):
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def load(folder, dtype, device):
    return models.load(ModelSource(folder, device, dtype), TensorParallel(0, 1, None, device))


@pytest.fixture
def engine_of(cuda):
    """Makes warm engines; closes them in the end."""
    engines = []

    def make(model, sizes):
        engines.append(LocalEngine(model, sizes, device=cuda))
        engines[-1].warm_up()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_hundred_streams_of_the_integer_model_are_exact(depth, tmp_path, cuda, engine_of):
    sizes = EngineSizes(depth=depth)
    engine = engine_of(integer_model(REFERENCE, tmp_path, cuda), sizes)
    replays_before = engine.engine.num_replays
    world = World(
        num_seats=sizes.num_seats,
        num_blocks=sizes.num_blocks,
        tokens_per_block=sizes.tokens_per_block,
        max_rows=sizes.max_rows,
        max_tokens=sizes.max_tokens,
        depth=depth,
        chunk=17,
        preempt_share=0.2,
    )
    requests = make_requests(REFERENCE, 100, seed=depth)
    TestScheduler(world, REFERENCE, engine.submit, engine.receive, seed=depth).run(requests)
    check_answers(REFERENCE, requests)
    assert engine.engine.num_replays > replays_before + 10


@pytest.mark.parametrize("num_rows", [1, 5, 32])
def test_replayed_graphs_are_exact_at_every_size(num_rows, tmp_path, cuda, engine_of):
    """Rows of unlike lengths: a graph must not have kept those of its capture."""
    engine = engine_of(integer_model(REFERENCE, tmp_path, cuda), EngineSizes(max_tokens=800, num_blocks=600))
    replays_before = engine.engine.num_replays
    prompts = [token_ids(1 + 3 * seat % 40, seed=seat, vocab_size=500) for seat in range(num_rows)]
    answers = generate(engine, prompts, 20, EngineSizes().tokens_per_block)
    assert answers == [REFERENCE.generate(prompt, 20) for prompt in prompts]
    assert engine.engine.num_replays >= replays_before + 19


def test_replayed_mixed_steps_are_exact(tmp_path, cuda, engine_of):
    """Prompts of all lengths beside decode rows, in graphs that were captured with other rows."""
    sizes = EngineSizes()
    engine = engine_of(integer_model(REFERENCE, tmp_path, cuda), sizes)
    while engine.engine.has_idle_work:
        engine.engine.use_idle_time(lambda: False)
    assert engine.engine._runner.graphs.num_captured == len(warm_sizes(engine.limits, "cuda"))
    world = World(
        num_seats=sizes.num_seats,
        num_blocks=sizes.num_blocks,
        tokens_per_block=sizes.tokens_per_block,
        max_rows=sizes.max_rows,
        max_tokens=sizes.max_tokens,
        depth=sizes.depth,
        chunk=13,
        preempt_share=0.2,
    )
    requests = make_requests(REFERENCE, 100, seed=7)
    TestScheduler(world, REFERENCE, engine.submit, engine.receive, seed=7).run(requests)
    check_answers(REFERENCE, requests)


def test_a_capture_that_gives_way_leaves_a_working_engine(tmp_path, cuda, engine_of):
    """Between any two of its operations."""
    engine = engine_of(integer_model(REFERENCE, tmp_path, cuda), EngineSizes())
    captured = engine.engine._runner.graphs.num_captured
    for num_looks in (1, 2, 10, 25):
        looks = iter(range(num_looks))
        engine.engine.use_idle_time(lambda looks=looks: next(looks, None) is None)
        assert engine.engine._runner.graphs.num_captured == captured
        prompt = token_ids(9, seed=num_looks, vocab_size=500)
        assert generate(engine, [prompt], 5, EngineSizes().tokens_per_block) == [REFERENCE.generate(prompt, 5)]
        engine.engine.clear()
    reserved = torch.cuda.memory_reserved()
    engine.engine.use_idle_time(lambda: False)
    assert engine.engine._runner.graphs.num_captured == captured + 1
    assert torch.cuda.memory_reserved() >= reserved, "the next step would have to ask the driver for memory"


@pytest.mark.parametrize("name", ["untied", "tied-bfloat16", "biases", "many-heads", "rope-llama3", "rope-dynamic"])
def test_llama_in_float32_passes_parity(name, tmp_path, cuda, engine_of):
    assert not torch.backends.cuda.matmul.allow_tf32
    reference = save(tmp_path, **CASES[name])
    engine = engine_of(load(tmp_path, "float32", cuda), LLAMA_SIZES)
    replays_before = engine.engine.num_replays
    prompts = [token_ids(length, seed=length) for length in (1, 3, 16, 17, 40, 70)]
    answers = generate(engine, prompts, 30, LLAMA_SIZES.tokens_per_block)
    check_parity(reference, [Output(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    assert engine.engine.num_replays >= replays_before + 29


def test_llama_logits_in_float32_equal_the_reference(tmp_path, cuda):
    """Eager, in any pieces: tells a wrong kernel from a wrong graph."""
    reference = save(tmp_path, **CASES["untied"])
    model, ids = load(tmp_path, "float32", cuda), token_ids(60)
    expected = reference_logits(reference, ids)
    for pieces in ([60], [41], [1], [20, 21]):
        got = PagedModel(model, device=cuda).run(ids, pieces)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_llama_error_in_bfloat16_is_near_transformers_own(tmp_path, cuda):
    reference = save(tmp_path, **CASES["tied-bfloat16"])
    ids = token_ids(60, seed=5)
    expected = reference_logits(reference, ids)
    own = reference_logits(load_reference(tmp_path, torch.bfloat16), ids).float()
    error = (PagedModel(load(tmp_path, "bfloat16", cuda), device=cuda).run(ids, [40]) - expected).abs().mean()
    assert error <= 1.5 * (own - expected).abs().mean()


def test_llama_in_bfloat16_serves(tmp_path, cuda, engine_of):
    save(tmp_path, **CASES["tied-bfloat16"])
    engine = engine_of(load(tmp_path, "bfloat16", cuda), LLAMA_SIZES)
    prompts = [token_ids(length, seed=length) for length in (5, 16, 33)]
    answers = generate(engine, prompts, 20, LLAMA_SIZES.tokens_per_block)
    assert [len(answer) for answer in answers] == [20, 20, 20]
    assert all(0 <= token < 131 for answer in answers for token in answer)


@pytest.fixture(params=["integer", "llama"])
def any_model(request, tmp_path, cuda):
    if request.param == "integer":
        return integer_model(REFERENCE, tmp_path, cuda)
    save(tmp_path)
    return load(tmp_path, "float32", cuda)


@pytest.fixture
def no_synchronisation():
    """Makes torch raise where it would wait for the device."""

    def switch(mode):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it does not see every kind
            torch.cuda.set_sync_debug_mode(mode)

    yield switch
    switch("default")


def test_a_launch_never_waits_for_the_device(any_model, engine_of, no_synchronisation):
    """A step of prompts whose seats ask for every kind of sampling, then one that replays a graph."""
    engine = engine_of(any_model, LLAMA_SIZES)
    generate(engine, [[1, 2, 3]] * 4, 3, 16)
    sampling = {"seed": 5, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "bias": ((1, 2.0),)}
    counting = {"penalty_lane": 1, "repetition_penalty": 1.2, "frequency_penalty": 0.1, "history": (1, 2)}
    second = PlanDraft(
        frees=[(0, 1)],
        registrations=[
            NewSeat(0, 2, 3, 64, flags=SeatFlag.DO_SAMPLE | SeatFlag.LOGPROBS, num_top_logprobs=3, **sampling),
            NewSeat(7, 1, 3, 64, flags=SeatFlag.DO_SAMPLE, **counting),
        ],
        appends=[(0, 0, 0, 60), (7, 0, 0, 61)],
        rows=[PlanRow(0, ids=(4, 5, 6)), PlanRow(7, ids=(7, 8, 9))],
    )
    no_synchronisation("error")
    for draft in (second, PlanDraft(rows=[PlanRow(0), PlanRow(7)])):
        engine.submit(engine.newest_plan_id + 1, draft.encode())
    no_synchronisation("default")
    rows = [row for _ in range(2) for row in engine.receive().rows]
    assert [row.status for row in rows] == [RowStatus.OK] * 4


def test_the_watch_sees_a_synchronisation(tmp_path, cuda, engine_of, no_synchronisation):
    model = integer_model(REFERENCE, tmp_path, cuda)
    engine = engine_of(model, EngineSizes())
    forward = model.forward
    model.forward = lambda batch, kv: forward(batch, kv) + int(batch.token_ids.max()) * 0
    no_synchronisation("error")
    engine.start(PlanDraft(registrations=[NewSeat(0, 1, 3, 64)], appends=[(0, 0, 0, 1)], rows=[PlanRow(0, ids=(1, 2))]))
    no_synchronisation("default")
    with pytest.raises(RuntimeError, match="synchroniz"):
        engine.receive()


def test_times_of_a_replayed_step(any_model, engine_of):
    engine = engine_of(any_model, LLAMA_SIZES)
    generate(engine, [[1, 2, 3]] * 4, 3, 16)
    replays_before = engine.engine.num_replays
    engine.submit(4, PlanDraft(rows=[PlanRow(seat) for seat in range(3)]).encode())
    result = engine.engine.collect(engine.tickets.pop(0))
    assert engine.engine.num_replays == replays_before + 1
    assert 0 < result.forward_us <= result.step_us < 1_000_000
