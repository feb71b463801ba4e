"""A kernel that is compiled while serving is counted and named."""

import shutil

import pytest
from shard_testkit.compiling import compile_one
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference

from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow

triton = pytest.importorskip("triton")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    return tmp_path / "cache"


def test_an_evicted_kernel_is_counted_in_the_step_that_needs_it(cache, tmp_path, caplog):
    model = integer_model(IntegerReference(), tmp_path)
    engine = LocalEngine(model, EngineSizes(), inline=True)
    engine.warm_up()
    compile_one()
    assert cache.exists()
    engine.engine.expect_no_compilation()

    def step(row, **edits):
        engine.start(PlanDraft(rows=[row], **edits))
        return engine.engine.collect(engine.tickets.pop()).num_kernels_compiled

    assert step(PlanRow(0, ids=(1,)), registrations=[NewSeat(0, 1, 1, 8)], appends=[(0, 0, 0, 1)]) == 0
    shutil.rmtree(cache)
    forward = model.forward
    model.forward = lambda batch, kv: (compile_one(), forward(batch, kv))[1]
    assert step(PlanRow(0)) == 1
    assert "_silu_mul_kernel was compiled while serving" in caplog.text
    caplog.clear()
    assert step(PlanRow(0)) == 1, "found on disk, which takes milliseconds"
    assert "_silu_mul_kernel was read from the cache while serving" in caplog.text
    model.forward = forward
    assert step(PlanRow(0)) == 0


def test_before_a_shard_is_ready_nothing_is_counted(cache, tmp_path):
    engine = LocalEngine(integer_model(IntegerReference(), tmp_path), EngineSizes(), inline=True)
    compile_one()
    assert engine.engine._compilations.take() == 0
