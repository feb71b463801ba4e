"""Timing on a CUDA device and its limits, measured in the same run."""

import functools
from collections.abc import Callable, Sequence

import torch

_BUDGET_SECONDS = 0.3
# Bytes that copies of a case together read and write: more than any cache holds.
_COLD_BYTES = 256 << 20
_MAX_COPIES = 128


def num_copies(num_bytes: int) -> int:
    """How many copies of a case to run in turn, so that each finds its tensors in memory and not in a cache."""
    return max(2, min(_MAX_COPIES, _COLD_BYTES // num_bytes))


def seconds_each(calls: Sequence[Callable[[], object]]) -> float:
    """Time of one call where all of them run in turn, captured and replayed, so that no launch is waited for.

    Calls that should read memory rather than caches are given as many different ones.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    first = _replay_seconds(graph)
    repeats = max(3, min(200, int(_BUDGET_SECONDS / first)))
    return min(_replay_seconds(graph) for _ in range(repeats)) / len(calls)


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@functools.cache
def copy_bandwidth() -> float:
    """Bytes a second, read and written together, of copying memory far larger than the caches.

    By a kernel: a graph's own copy reached two thirds of this on an H200.
    """
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_each([lambda: torch.mul(source, 2.0, out=target)] * 4)


@functools.cache
def read_bandwidth() -> float:
    """Bytes a second of reading memory far larger than the caches: the better of two reductions of torch."""
    source = torch.ones(1 << 29, device="cuda")
    out = torch.empty((), device="cuda")
    calls = (lambda: torch.sum(source, 0, out=out), lambda: torch.amax(source, 0, out=out))
    return source.nbytes / min(seconds_each([call] * 4) for call in calls)


@functools.cache
def matmul_flops() -> float:
    """Floating-point operations a second of a large bfloat16 product. Random matrices: others take less power."""
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_each([lambda: torch.mm(a, b, out=out)] * 4)
