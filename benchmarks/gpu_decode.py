"""An 8B-shaped model in bf16 in the engine of this process, without router and HTTP: decode steps at several batch
sizes with 1k of context, and prefill of one prompt, each beside this card's limits; and a profile of decode steps.

`PYTHONPATH=server:kernels/benches python benchmarks/gpu_decode.py --folder /dev/shm/8b --profile FILE`
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import gpu_models
import record
import torch
from cuda_timing import copy_bandwidth, matmul_flops
from shard_testkit.engines import EngineSizes, LocalEngine
from torch.profiler import ProfilerActivity, profile

from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow

BATCHES = (1, 8, 32, 128, 256)
CONTEXT = 1024
STEPS = 48
PREFILLS = (1024, 8000)
TOKENS_PER_BLOCK = 16
DEVICE = torch.device("cuda", 0)


class Bench:
    """One engine, and the seats that are in use."""

    def __init__(self, folder: Path, max_rows: int) -> None:
        begin = time.monotonic()
        model = models.load(ModelSource(folder, DEVICE, "bfloat16"), TensorParallel(0, 1, None, DEVICE))
        torch.cuda.synchronize()
        record.report("gpu_decode", "load", time.monotonic() - begin, "s")
        self.blocks_each = -(-(CONTEXT + 2 * STEPS + 8) // TOKENS_PER_BLOCK)
        sizes = EngineSizes(
            num_seats=max_rows,
            num_blocks=max(max_rows * self.blocks_each, 8192 // TOKENS_PER_BLOCK) + 1,
            tokens_per_block=TOKENS_PER_BLOCK,
            max_rows=max_rows,
            max_tokens=8192,
            max_seq_len=8192,
        )
        self.engine = LocalEngine(model, sizes, device=DEVICE)
        begin = time.monotonic()
        self.engine.warm_up()
        torch.cuda.synchronize()
        record.report("gpu_decode", "warm_up", time.monotonic() - begin, "s")
        self.generation = 0

    def fill(self, batch: int, context: int) -> None:
        """Prompts of `context` tokens in the first `batch` seats, a few of them a step."""
        self.generation += 1
        blocks = max(self.blocks_each, -(-(context + 8) // TOKENS_PER_BLOCK))
        per_step = max(1, 8000 // context)
        for first in range(0, batch, per_step):
            seats = range(first, min(first + per_step, batch))
            draft = PlanDraft(
                registrations=[NewSeat(seat, self.generation, context, 8192) for seat in seats],
                appends=[(seat, 0, i, 1 + seat * blocks + i) for seat in seats for i in range(blocks)],
                rows=[PlanRow(seat, ids=tuple((seat + 7 * i) % 1000 for i in range(context))) for seat in seats],
            )
            self.engine.run(draft)

    def free(self, batch: int) -> None:
        self.engine.run(PlanDraft(frees=[(seat, self.generation) for seat in range(batch)]))

    def decode(self, batch: int, num_steps: int) -> list[float]:
        """Seconds between the ends of neighbouring steps, two of them in flight."""
        draft = PlanDraft(rows=[PlanRow(seat) for seat in range(batch)])
        self.engine.start(draft)
        ends = []
        for _ in range(num_steps):
            self.engine.start(draft)
            result = self.engine.receive()
            assert all(row.tokens for row in result.rows), "a row failed"
            ends.append(time.perf_counter())
        self.engine.receive()
        return [after - before for before, after in itertools.pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    shape = gpu_models.Shape(layers=options.layers)
    if not (options.folder / "config.json").exists():
        gpu_models.write(shape, options.folder)
    bandwidth, flops = copy_bandwidth(), matmul_flops()
    record.report("gpu_decode", "copy_bandwidth", bandwidth / 1e12, "TB/s")
    record.report("gpu_decode", "bf16_product", flops / 1e12, "TFLOP/s")
    bench = Bench(options.folder, max(BATCHES))
    for batch in BATCHES:
        bench.fill(batch, CONTEXT)
        bench.decode(batch, 4)
        seconds = statistics.median(bench.decode(batch, STEPS))
        kv_bytes = batch * (CONTEXT + STEPS / 2) * shape.kv_bytes_per_token
        floor = max((shape.step_weight_bytes + kv_bytes) / bandwidth, shape.step_weight_bytes * batch / flops)
        peer = record.Peer("weights and KV at copy bandwidth", batch / floor)
        record.report("gpu_decode", f"decode/{batch}", batch / seconds, "tokens/s", peer)
        if options.profile and batch in (1, 32, 256):
            _profile(bench, batch, options.profile)
        bench.free(batch)
    for length in PREFILLS:
        _prefill(bench, shape, length, flops)


def _profile(bench: Bench, batch: int, path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        bench.decode(batch, 8)
    with path.open("a") as file:
        table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=80)
        file.write(f"batch {batch}, 9 decode steps\n{table}\n")


def _prefill(bench: Bench, shape: gpu_models.Shape, length: int, flops: float) -> None:
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        bench.fill(1, length)
        times.append(time.perf_counter() - begin)
        bench.free(1)
    layers_flops = (shape.step_weight_bytes - 2 * shape.vocabulary * shape.hidden) * length
    attention_flops = 2 * shape.layers * shape.heads * shape.head_dim * length**2
    floor = (layers_flops + attention_flops) / flops
    peer = record.Peer("products at the rate of 8192 x 8192", length / floor)
    record.report("gpu_decode", f"prefill/{length}", length / min(times), "tokens/s", peer)


if __name__ == "__main__":
    main()
