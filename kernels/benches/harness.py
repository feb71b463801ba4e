"""What all benches of operations share: timing, the machine's limits measured in the same run, one JSON line a figure.

Times are the shortest of many runs: the machine may be shared, and noise only ever adds.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator

import torch

from penstock_kernels import linear

_MICROSECONDS = 1e6


def shortest_seconds(work: Callable[[], object], budget_seconds: float = 0.5) -> float:
    """Runs `work` repeatedly for about the budget, at least 5 times."""
    for _ in range(3):
        work()
    best, runs, end = float("inf"), 0, time.perf_counter() + budget_seconds
    while runs < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


@functools.cache
def read_bandwidth() -> float:
    """Bytes a second that summing memory far larger than the caches reads."""
    data = torch.ones(64 << 20)
    return data.nbytes / shortest_seconds(data.sum, 1.0)


@functools.cache
def flops() -> float:
    """Floating-point operations a second of a large packed float32 product."""
    size, tokens = 2048, 512
    layer, x = linear.prepare(torch.ones(size, size)), torch.ones(tokens, size)
    return 2 * tokens * size * size / shortest_seconds(lambda: layer(x), 1.0)


@functools.cache
def dispatch_seconds() -> float:
    """Time of one small torch operation."""
    x = torch.ones(1)
    return shortest_seconds(lambda: x.add_(1.0), 0.2)


def report(bench: str, case: str, seconds: float, floor_bytes: float, floor_flops: float = 0.0) -> None:
    """Prints the time beside the longer of reading those bytes and doing those operations, and one torch call."""
    floors = {
        "memory bandwidth": floor_bytes / read_bandwidth(),
        "arithmetic": floor_flops / flops() if floor_flops else 0.0,
        "one torch call": dispatch_seconds(),
    }
    peer = max(floors, key=lambda name: floors[name])
    emit(bench, case, (seconds * _MICROSECONDS, "us"), (peer, floors[peer] * _MICROSECONDS))


def emit(bench: str, case: str, figure: tuple[float, str], peer: tuple[str, float]) -> None:
    """Prints one figure (value, unit) and its peer (name, value) as a line of JSON."""
    value, unit = figure
    line = {
        "bench": bench,
        "case": case,
        "value": round(value, 2),
        "unit": unit,
        "peer": peer[0],
        "peer_value": round(peer[1], 2),
        "ratio": round(value / peer[1], 3),
    }
    print(json.dumps(line), flush=True)


def rotating(make: Callable[[], object], each_bytes: int, count_limit: int = 40) -> Iterator[object]:
    """Endless copies of one thing in turn, together larger than the caches, so that each use reads memory."""
    copies = [make() for _ in range(max(2, min(count_limit, (128 << 20) // each_bytes)))]
    while True:
        yield from copies


def set_up() -> None:
    """Reads `--threads`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch.set_grad_enabled(False)
