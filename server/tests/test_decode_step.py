"""A decode step neither waits for the device nor does more work for more rows: no host synchronisation, the same
operations and the same lines of Python at 1, 8 and 32 rows."""

import sys
from pathlib import Path

import pytest
import torch
from model_testkit import tiny_llama
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference
from torch.utils._python_dispatch import TorchDispatchMode

import penstock_server
from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow

PACKAGE = str(Path(penstock_server.__file__).parent)
# Each of these copies a value to the host and waits for it, or has a result whose size only the device knows.
SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Operations(TorchDispatchMode):
    """Names of the operations that were dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.boolean_indexing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.append(name)
        if name in ("index", "index_put_", "index_put"):
            self.boolean_indexing |= any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


class Lines:
    """Counts the lines of the package that run."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _call(self, frame, event, arg):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, arg):
        self.count += event == "line"
        return self._line


def engine_with(model, num_rows):
    """Rows of one block-count group, with one decode step behind them."""
    engine = LocalEngine(model, EngineSizes(max_tokens=256), inline=True)
    seats = range(num_rows)
    engine.run(
        PlanDraft(
            registrations=[NewSeat(seat, 1, 5, 64) for seat in seats],
            appends=[(seat, 0, index, 1 + seat * 4 + index) for seat in seats for index in range(4)],
            rows=[PlanRow(seat, ids=(1, 2, 3, 4, seat)) for seat in seats],
        )
    )
    engine.run(PlanDraft(rows=[PlanRow(seat) for seat in seats]))
    return engine


def decode(engine, num_rows):
    return engine.run(PlanDraft(rows=[PlanRow(seat) for seat in range(num_rows)], same_rows=True))


def operations(model, num_rows):
    engine = engine_with(model, num_rows)
    with Operations() as seen:
        decode(engine, num_rows)
    return seen


@pytest.fixture
def model(tmp_path):
    return integer_model(IntegerReference(vocab_size=64), tmp_path)


@pytest.fixture(params=["integer", "llama"])
def any_model(request, tmp_path):
    if request.param == "integer":
        return request.getfixturevalue("model")
    cpu = torch.device("cpu")
    tiny_llama.save(tmp_path)
    return models.load(ModelSource(tmp_path, cpu, "float32"), TensorParallel(0, 1, None, cpu))


def test_a_decode_step_never_waits_for_the_device(any_model):
    seen = operations(any_model, 8)
    assert not set(seen.names) & set(SYNCHRONISING)
    assert not seen.boolean_indexing
    assert seen.names.count("copy_") == 1, "the step's numbers travel in one copy"


@pytest.mark.parametrize("wait", [lambda ids: int(ids.max()) * 0, lambda ids: len(ids.nonzero()) * 0])
def test_the_watch_sees_a_synchronisation(model, wait):
    forward = model.forward
    model.forward = lambda batch, kv: forward(batch, kv) + wait(batch.token_ids)
    assert set(operations(model, 8).names) & set(SYNCHRONISING)


def test_the_watch_sees_a_boolean_index(model):
    forward = model.forward
    model.forward = lambda batch, kv: forward(batch, kv) + batch.token_ids[batch.token_ids >= 0].sum() * 0
    assert operations(model, 8).boolean_indexing


def test_the_same_operations_at_1_8_and_32_rows(any_model):
    names = [operations(any_model, num_rows).names for num_rows in (1, 8, 32)]
    assert names[0] == names[1] == names[2]


def test_the_same_lines_of_python_at_1_8_and_32_rows(any_model):
    counts = []
    for num_rows in (1, 8, 32):
        engine = engine_with(any_model, num_rows)
        blob = PlanDraft(rows=[PlanRow(seat) for seat in range(num_rows)], same_rows=True).encode()
        with Lines() as lines:
            engine.submit(3, blob)
            engine.engine.collect(engine.tickets.pop())
        counts.append(lines.count)
    assert counts[0] == counts[1] == counts[2] > 100


def test_the_same_lines_of_python_for_prompts_of_any_number(model):
    counts = []
    for num_rows in (2, 8, 32):
        engine = engine_with(model, num_rows)
        rows = [PlanRow(seat, ids=(1, 2) if seat % 2 else (), start=6 if seat % 2 else 0) for seat in range(num_rows)]
        blob = PlanDraft(rows=rows).encode()
        with Lines() as lines:
            engine.submit(3, blob)
            engine.engine.collect(engine.tickets.pop())
        counts.append(lines.count)
    assert counts[0] == counts[1] == counts[2] > 100
