"""Size and contents of the KV pool."""

import os
from pathlib import Path

import pytest
import torch

from penstock_server import kv_cache
from penstock_server.models.base import KvSpec

SPEC = KvSpec(num_layers=3, num_kv_heads=2, head_dim=8, dtype=torch.bfloat16)
CPU = torch.device("cpu")


def test_a_pool_has_the_bytes_it_promises():
    pool = kv_cache.allocate(SPEC, num_blocks=5, tokens_per_block=4, device=CPU)
    tensors = [*pool.keys, *pool.values]
    assert {tensor.shape for tensor in tensors} == {(5, 4, 2, 8)}
    assert sum(tensor.nbytes for tensor in tensors) == 5 * kv_cache.bytes_per_block(SPEC, 4)
    assert not any(tensor.any() for tensor in tensors)


def test_a_pool_on_a_cpu_takes_no_memory_until_it_is_used():
    before = resident_bytes()
    spec = KvSpec(num_layers=2, num_kv_heads=1, head_dim=64, dtype=torch.float32)
    pool = kv_cache.allocate(spec, num_blocks=16_384, tokens_per_block=16, device=CPU)  # 256 MiB
    assert resident_bytes() - before < 64 << 20
    pool.keys[0].fill_(1.0)
    assert resident_bytes() - before >= 64 << 20


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fill_reaches_every_slot_of_every_block():
    pool = kv_cache.allocate(SPEC, 5, 4, CPU)
    pool.fill(float("nan"))
    assert all(tensor.isnan().all() for tensor in (*pool.keys, *pool.values))


def test_blocks_that_fit_leave_memory_and_are_no_more_than_useful(monkeypatch):
    monkeypatch.setattr(kv_cache, "available_memory_bytes", lambda: 1000)
    assert kv_cache.blocks_that_fit(10, 10_000, CPU) == 50
    assert kv_cache.blocks_that_fit(10, 7, CPU) == 7
    with pytest.raises(ValueError, match="no memory for a KV cache: 500 bytes free, one block takes 400"):
        kv_cache.blocks_that_fit(400, 7, CPU)


def test_a_gpu_keeps_what_steps_take_and_a_fiftieth(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 10_000))
    device = torch.device("cuda", 0)
    assert kv_cache.blocks_that_fit(10, 10_000, device, step_bytes=1000) == (5000 - 1000 - 200) // 10
    with pytest.raises(ValueError, match="no memory for a KV cache: 0 bytes free"):
        kv_cache.blocks_that_fit(10, 7, device, step_bytes=4900)


def test_available_memory_is_known():
    assert 0 < kv_cache.available_memory_bytes() < 1 << 50
