"""Large matrices read by several threads through buffers: every part equals what safetensors gives."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_testkit.paged import PagedModel
from model_testkit.tiny_llama import save
from safetensors.torch import load_file, save_file

from penstock_server import models, parallel_reads, weights
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.parallel_reads import ParallelReads
from penstock_server.weights import CheckpointReader, WeightError

CPU = torch.device("cpu")
PIECE_BYTES = 900


@pytest.fixture
def always_parallel(monkeypatch):
    """Small matrices too, in small pieces, by three threads, on the CPU as well. Gives what was read so."""
    read = []

    class Noted(ParallelReads):
        def read(self, stored):
            read.append(stored)
            return super().read(stored)

    monkeypatch.setattr(weights, "for_device", lambda device: Noted(device, 3, PIECE_BYTES))
    monkeypatch.setattr(weights, "_PARALLEL_BYTES", 1)
    return read


@st.composite
def parts(draw):
    """A matrix, and a part of it in one or two dimensions, or none."""
    rows, columns = draw(st.integers(1, 200)), draw(st.integers(1, 300))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    part = ()
    for size in (rows, columns)[: draw(st.integers(0, 2))]:
        start = draw(st.integers(0, size - 1))
        part += (slice(start, draw(st.integers(start + 1, size))),)
    return torch.arange(rows * columns).reshape(rows, columns).to(dtype), part


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts())
def test_a_part_is_what_safetensors_gives(tmp_path, always_parallel, case):
    matrix, part = case
    save_file({"vector": torch.ones(3), "matrix": matrix, "last": torch.ones(2)}, tmp_path / "model.safetensors")
    always_parallel.clear()
    with CheckpointReader(tmp_path, ("last",)) as reader:
        assert torch.equal(reader.read("vector", (3,)), torch.ones(3))
        found = reader.read("matrix", tuple(matrix.shape), part)
    assert found.dtype == matrix.dtype
    assert torch.equal(found, matrix[part])
    assert len(always_parallel) == (matrix.shape[1] * matrix.dtype.itemsize <= PIECE_BYTES)


def test_other_dtypes_are_judged_as_ever(tmp_path, always_parallel):
    save_file({"a": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match=r"a is stored as torch\.int8"), CheckpointReader(tmp_path) as reader:
        reader.read("a", (2, 2))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, always_parallel):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(500, 10)}, path)
    reader = CheckpointReader(tmp_path)
    reader._file("a")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    with pytest.raises(WeightError, match=r"model\.safetensors cannot be read: ends at byte \d+, \d+ too early"):
        reader.read("a", (500, 10))
    assert len(always_parallel) == 1


def test_a_model_is_the_same_either_way(tmp_path, always_parallel, monkeypatch):
    save(tmp_path)
    source = ModelSource(tmp_path, CPU, "float32")
    parallel = TensorParallel(0, 1, None, CPU)
    logits = []
    for _ in range(2):
        logits.append(PagedModel(models.load(source, parallel)).run(list(range(20)), [7, 13]))
        monkeypatch.setattr(weights, "for_device", lambda device: None)
    assert torch.equal(*logits)
    assert len(always_parallel) >= 10


def test_a_cpu_reads_from_the_mapped_file():
    assert parallel_reads.for_device(CPU) is None


@pytest.mark.gpu
def test_a_gpu_gets_what_is_in_the_file(tmp_path):
    """Many matrices after each other, in memory that the one before has just left."""
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{i}": torch.randn(3000, 1000 + 64 * (i % 3), generator=generator) for i in range(12)}
    save_file(tensors, tmp_path / "model.safetensors")
    expected = load_file(tmp_path / "model.safetensors")
    with CheckpointReader(tmp_path, device=torch.device("cuda", 0)) as reader:
        for name, matrix in expected.items():
            part = (slice(0, 3000), slice(100, 900)) if int(name) % 2 else (slice(50, 2900),)
            found = reader.read(name, tuple(matrix.shape), part)
            assert found.is_cuda
            assert torch.equal(found.clone().cpu(), matrix[part])
