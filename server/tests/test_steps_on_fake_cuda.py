"""Whole steps of the engine as they run on CUDA, seen without a GPU: launches of Triton kernels and copies."""

import pytest
import torch
from model_testkit import tiny_llama
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.fake_cuda import CUDA, fake_cuda
from shard_testkit.integer import IntegerReference

from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag
from penstock_server.warmup import run_all_sampling_stages

LAYERS = 2
SIZES = EngineSizes(max_tokens=2048, num_blocks=2048, max_seq_len=2048, tokens_per_block=16)
# What a layer launches beside its products, of which there are four.
PRODUCTS = 4
# Of rows that sample with top-k and top-p.
SAMPLING = ["edit_kernel", "cut_kernel", "weigh_kernel", "choose_kernel"]


def layer(*attention):
    return ["_rms_norm_kernel", "_rotary_kv_store_kernel", *attention, "_rms_norm_kernel", "_silu_mul_kernel"]


def prompt(seat, count):
    return PlanRow(seat, True, 0, tuple(index % 100 for index in range(count)))


@pytest.fixture
def launches(tmp_path, monkeypatch):
    tiny_llama.save(tmp_path, dtype=torch.bfloat16, num_hidden_layers=LAYERS, max_position_embeddings=2048)
    with fake_cuda(monkeypatch) as launches:
        yield launches


@pytest.fixture
def engine(launches, tmp_path):
    model = models.load(ModelSource(tmp_path, CUDA, "bfloat16"), TensorParallel(0, 1, None, CUDA))
    return busy_engine(model, launches)


def busy_engine(model, launches):
    """Eight seats with blocks, four of which have sampled a token."""
    engine = LocalEngine(model, SIZES, inline=True, device=CUDA)
    engine.run(
        PlanDraft(
            registrations=[registration(seat) for seat in range(8)],
            appends=[(seat, 0, index, 1 + seat * 64 + index) for seat in range(8) for index in range(64)],
            rows=[PlanRow(seat, ids=(1, 2, 3, 4, seat)) for seat in range(4)],
        )
    )
    launches.clear()
    return engine


def registration(seat):
    """Odd seats sample, with a penalty."""
    if seat % 2 == 0:
        return NewSeat(seat, 1, 5, 1000)
    flags = SeatFlag.DO_SAMPLE | SeatFlag.LOGPROBS
    lane = {"penalty_lane": seat // 2, "repetition_penalty": 1.1}
    return NewSeat(seat, 1, 5, 1000, flags, temperature=0.7, top_p=0.9, top_k=40, num_top_logprobs=2, **lane)


@pytest.mark.parametrize(
    ("rows", "attention"),
    [
        ([PlanRow(seat) for seat in range(4)], ["decode_kernel"]),
        # A step that may be replayed launches both, whatever its rows.
        ([prompt(5, 100)], ["decode_kernel", "prompt_kernel"]),
        ([PlanRow(0), PlanRow(3), prompt(5, 16)], ["decode_kernel", "prompt_kernel"]),
        ([prompt(5, 900)], ["prompt_kernel"]),
        ([PlanRow(0), PlanRow(3), prompt(5, 900)], ["decode_kernel", "prompt_kernel"]),
    ],
    ids=["decode", "feed", "mixed", "large-feed", "large-mixed"],
)
def test_a_step_never_waits_and_copies_once_each_way(engine, launches, rows, attention):
    with launches:
        engine.run(PlanDraft(rows=rows))
    assert len(launches.copies) == 2, "the step's numbers there, its results back"
    kernels = [name for name in launches.kernels if name != "plan_kernel"]
    forward = ["_prepare_step_kernel", "_embedding_kernel", *layer(*attention) * LAYERS, "_rms_norm_kernel"]
    assert kernels == [*forward, *SAMPLING]
    assert launches.kernels.count("plan_kernel") == 1
    assert launches.products == PRODUCTS * LAYERS + 1


def test_sampling_launches_what_its_rows_need(engine, launches):
    for rows, expected in ((0, 2), SAMPLING[::3]), ((0, 1), SAMPLING):
        launches.clear()
        with launches:
            engine.run(PlanDraft(rows=[PlanRow(seat) for seat in rows]))
        assert [name for name in launches.kernels if name in SAMPLING] == expected
        assert len(launches.copies) == 2


def test_the_warm_up_compiles_all_that_sampling_launches(engine, launches):
    """Whatever rows a step has."""

    def sampling():
        return {name for name in launches.compiled if name.split()[0] in SAMPLING}

    launches.compiled.clear()
    engine.engine.clear()
    run_all_sampling_stages(engine.engine)
    warm = sampling()
    launches.compiled.clear()
    assert len(warm) == len(SAMPLING) + 2  # those without parameters twice
    engine = busy_engine(engine.parts.model, launches)
    for rows in ((0,), (0, 2), (1,), (0, 1, 2, 3)):
        engine.run(PlanDraft(rows=[PlanRow(seat) for seat in rows]))
    assert sampling() <= warm


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x + torch.ones(1)]
)
def test_a_step_that_waits_raises(engine, launches, wait):
    forward = engine.parts.model.forward
    engine.parts.model.forward = lambda batch, kv: (wait(batch.positions), forward(batch, kv))[1]
    with pytest.raises(Exception, match=r"local_scalar_dense|nonzero|same device|index"), launches:
        engine.run(PlanDraft(rows=[PlanRow(0)]))


@pytest.mark.parametrize("rows", [[PlanRow(0), PlanRow(3)], [PlanRow(0), prompt(5, 16)], [prompt(5, 900)]], ids=len)
def test_the_integer_model_neither(launches, tmp_path, rows):
    engine = busy_engine(integer_model(IntegerReference(vocab_size=131), tmp_path / "integer", CUDA), launches)
    with launches:
        engine.run(PlanDraft(rows=rows))
    assert len(launches.copies) == 2
    assert launches.kernels == ["_prepare_step_kernel", *SAMPLING]


def test_a_layer_of_large_weights_and_few_rows_is_eight_launches(tmp_path, monkeypatch):
    """As docs/kernels.md has it; with more rows the library's products are taken, and the activation is a ninth."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4}
    sizes |= {"head_dim": 128, "vocab_size": 4096, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    tiny_llama.save(tmp_path, dtype=torch.bfloat16, **sizes)
    with fake_cuda(monkeypatch) as launches:
        model = models.load(ModelSource(tmp_path, CUDA, "bfloat16"), TensorParallel(0, 1, None, CUDA))
        engine = busy_engine(model, launches)
        with launches:
            engine.run(PlanDraft(rows=[PlanRow(seat) for seat in range(4)]))
    attention = ["_rms_norm_kernel", "_skinny_kernel", "_rotary_kv_store_kernel", "decode_kernel", "_skinny_kernel"]
    mlp = ["_rms_norm_kernel", "_skinny_kernel", "_skinny_kernel"]
    kernels = [name for name in launches.kernels if name != "plan_kernel"]
    ends = ["_rms_norm_kernel", "_skinny_kernel"]
    assert kernels == ["_prepare_step_kernel", "_embedding_kernel", *attention, *mlp, *ends, *SAMPLING]
    assert len(attention) + len(mlp) == 8
    assert launches.products == 0
