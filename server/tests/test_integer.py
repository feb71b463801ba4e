"""The integer model's arithmetic, and that each of its inputs matters."""

import json

import pytest
import torch
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference

from penstock_server import models
from penstock_server.models.integer import PRIME, IntegerConfig, powers
from penstock_server.models.source import ModelSource
from penstock_server.parallel import Split, TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow

CPU = torch.device("cpu")


def test_powers_are_those_of_python():
    assert powers(1_007_922, 100).tolist() == [pow(1_007_922, exponent, PRIME) for exponent in range(1, 101)]


@pytest.mark.parametrize("shape", [(3, 1, 1), (512, 2, 4), (2**24, 3, 2)])
def test_the_first_token_is_the_definition(tmp_path, shape):
    reference = IntegerReference(*shape)
    engine = LocalEngine(integer_model(reference, tmp_path), EngineSizes())
    prompt = (0, 1, 1, 0, reference.vocab_size - 2)
    draft = PlanDraft(
        registrations=[NewSeat(0, 1, 5, 64)],
        appends=[(0, 0, 0, 9), (0, 0, 1, 4)],
        rows=[PlanRow(0, ids=prompt)],
    )
    assert engine.run(draft).rows[0].tokens == (reference.next_token(list(prompt)),)
    engine.close()


def test_a_swapped_block_changes_the_token(tmp_path):
    """What the model is for: a wrong page cannot go unnoticed."""
    engine = LocalEngine(integer_model(IntegerReference(vocab_size=4096), tmp_path), EngineSizes())
    tokens = []
    for generation, swap in ((1, False), (2, True)):
        draft = PlanDraft(
            registrations=[NewSeat(0, generation, 8, 64)],
            appends=[(0, 0, index, index + 1) for index in range(3)],
            rows=[PlanRow(0, False, ids=tuple(range(8)))],
        )
        engine.run(draft)
        if swap:
            for pool in (*engine.kv.keys, *engine.kv.values):
                pool[[1, 2]] = pool[[2, 1]]
        tokens.append(engine.run(PlanDraft(rows=[PlanRow(0, start=8, ids=(9,))])).rows[0].tokens)
        engine.run(PlanDraft(frees=[(0, generation)]))
    assert tokens[0] != tokens[1]
    engine.close()


def test_it_is_described_without_being_loaded(tmp_path):
    folder = IntegerReference().write_config(tmp_path, max_positions=99)
    description = models.describe(folder, Split(1, 2), CPU, "bfloat16")
    assert (description.vocab_size, description.max_positions) == (512, 99)
    spec = description.kv_spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.dtype) == (2, 2, 1, torch.float32)
    model = models.load(ModelSource(folder, CPU, "auto"), TensorParallel(0, 1, None, CPU))
    assert model.kv_spec.num_kv_heads == 4


def test_heads_must_divide_by_the_ranks(tmp_path):
    with pytest.raises(ValueError, match="4 key-value heads do not divide by 3 ranks"):
        models.describe(IntegerReference().write_config(tmp_path), Split(0, 3), CPU, "auto")


@pytest.mark.parametrize(
    ("change", "text"),
    [({"vocab_size": 2}, "end at 16777216"), ({"max_position_embeddings": 2**25}, "end at"), (None, "vocab_size")],
)
def test_a_config_that_cannot_be_exact(tmp_path, change, text):
    path = IntegerReference().write_config(tmp_path) / "config.json"
    values = json.loads(path.read_text())
    if change is None:
        del values["vocab_size"]
    path.write_text(json.dumps(values | (change or {})))
    with pytest.raises(ValueError, match=text):
        IntegerConfig.from_folder(tmp_path)
