"""The sum over ranks of what a decode step adds up, [rows, 8192] in bfloat16: our kernel over symmetric memory against
the library's collective, one process a GPU, each in a captured graph. In a dry run: the library alone, by two processes
on the CPU, in float32. A part of `gpu_report.py`."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gpu_bed
import record
import torch

from penstock_server.parallel import TensorParallel

CHANNELS = 8192
ROWS = (1, 8, 32, 64)
SKIPPED = 75
CALLS = 20
MICROSECONDS = 1e6


def seconds_on_gpus(work: Callable[[], object]) -> float:
    """Of one call. All ranks replay as often, so that none waits for one that has gone."""
    work()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best = float("inf")
    for _ in range(50):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best / CALLS


def seconds_on_cpus(work: Callable[[], object]) -> float:
    """Of one call. As many on every rank."""
    best = float("inf")
    for _ in range(30):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def measure(rank: int, size: int, folder: Path, cuda: bool) -> None:
    """One rank's part; the first one reports."""
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    library = TensorParallel(rank, size, folder / "library", device)
    symmetric = TensorParallel(rank, size, folder / "symmetric", device, symmetric=True) if cuda else None
    seconds = seconds_on_gpus if cuda else seconds_on_cpus
    for rows in ROWS:
        x = torch.randn(rows, CHANNELS, dtype=torch.bfloat16 if cuda else torch.float32, device=device)
        by_library = seconds(lambda x=x: library.all_reduce(x)) * MICROSECONDS
        case = f"{size} {'GPUs' if cuda else 'CPU processes'}, {rows} rows"
        ours = None if symmetric is None else seconds(lambda x=x: symmetric.all_reduce(x)) * MICROSECONDS
        if rank == 0 and ours is None:
            record.report("gpu_all_reduce", f"library, {case}", by_library, "us")
        elif rank == 0 and ours is not None:
            record.report("gpu_all_reduce", f"symmetric, {case}", ours, "us", record.Peer("library", by_library))


def main() -> None:
    parser = gpu_bed.parser(__doc__)
    parser.add_argument("--ranks", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpu_bed.bed(options)
    if options.rank is not None:
        measure(options.rank, options.ranks, options.meet, not options.dry_run)
        return
    if not options.dry_run and torch.cuda.device_count() < options.ranks:
        print(f"skipped: {options.ranks} GPUs are needed, {torch.cuda.device_count()} are here")
        raise SystemExit(SKIPPED)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, "--ranks", str(options.ranks), "--meet", folder]
        processes = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.ranks)]
        try:
            codes = [process.wait(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
