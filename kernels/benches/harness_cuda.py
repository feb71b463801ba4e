"""Timing on a GPU, in captured graphs as the server runs its steps: launches from Python would cover short kernels."""

import functools
from collections.abc import Callable, Sequence

import torch

# Bytes that copies of a case together read and write: more than any cache holds.
COLD_BYTES = 256 << 20
_MAX_COPIES = 128


def num_copies(num_bytes: int) -> int:
    """How many copies of a case to run in turn, so that each finds its tensors in memory and not in a cache."""
    return max(2, min(_MAX_COPIES, COLD_BYTES // num_bytes))


def graph_seconds(works: Sequence[Callable[[], object]], num_replays: int = 20) -> float:
    """Seconds of one of `works`, run one after another in one captured graph: the shortest replay's share."""
    for work in works:
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    for _ in range(num_replays):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1000)
    return best / len(works)


@functools.cache
def copy_bandwidth() -> float:
    """Bytes a second that copying memory far larger than the caches reads and writes."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds([lambda: target.copy_(source)])
