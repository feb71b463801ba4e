"""A model of the 8B shape in bf16 in the engine of this process, without router and HTTP: decode steps at several batch
sizes with 1k of context, prefill of one prompt, and a profile of decode steps. A part of `gpu_report.py`."""

import itertools
import statistics
import time
from pathlib import Path

import gpu_bed
import gpu_models
import record
from gpu_bed import Bed
from shard_testkit.engines import EngineSizes, LocalEngine
from torch.profiler import ProfilerActivity, profile

from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag
from penstock_server.step import StepOutput

BATCHES = (1, 8, 32, 128, 256)
PROFILED = (1, 32, 256)
# Of the roofline, by batch size.
TARGETS = {1: 0.88, 32: 0.88, 256: 0.87}
CONTEXT = 1024
STEPS = 48
PREFILLS = (1024, 8000)
TOKENS_PER_BLOCK = 16
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class Bench:
    """One engine, and the seats that are in use."""

    def __init__(self, bed: Bed, max_rows: int, context: int = CONTEXT, longest: int = 8192) -> None:
        gpu_models.describe(bed.shape, bed.model)
        begin = time.monotonic()
        # Weights are not the point: random ones are made on the device, sooner than any file is read.
        source = ModelSource(bed.model, bed.device, bed.dtype, "dummy")
        model = models.load(source, TensorParallel(0, 1, None, bed.device))
        bed.synchronize()
        record.report("gpu_decode", "make_weights", time.monotonic() - begin, "s")
        self.context = context
        self.blocks_each = -(-(context + 5 * STEPS + 8) // TOKENS_PER_BLOCK)
        sizes = EngineSizes(
            num_seats=max_rows,
            num_blocks=max(max_rows * self.blocks_each, longest // TOKENS_PER_BLOCK + 1) + 1,
            tokens_per_block=TOKENS_PER_BLOCK,
            max_rows=max_rows,
            max_tokens=longest,
            max_seq_len=longest,
        )
        self.engine = LocalEngine(model, sizes, device=bed.device)
        begin = time.monotonic()
        self.engine.warm_up()
        bed.synchronize()
        record.report("gpu_decode", "warm_up", time.monotonic() - begin, "s")
        self._longest = longest
        self._generation = 0

    def fill(self, batch: int, context: int | None = None, samples: bool = False) -> None:
        """Prompts of `context` tokens in the first `batch` seats, a few of them a step."""
        self._generation += 1
        context = context or self.context
        blocks = max(self.blocks_each, -(-(context + 8) // TOKENS_PER_BLOCK))
        per_step = max(1, self._longest // context)
        flags = SeatFlag.DO_SAMPLE if samples else SeatFlag(0)
        wishes = SAMPLING if samples else {}
        for first in range(0, batch, per_step):
            seats = range(first, min(first + per_step, batch))
            draft = PlanDraft(
                registrations=[
                    NewSeat(seat, self._generation, context, self._longest, flags, seed=seat, **wishes)
                    for seat in seats
                ],
                appends=[(seat, 0, i, 1 + seat * blocks + i) for seat in seats for i in range(blocks)],
                rows=[PlanRow(seat, ids=tuple((seat + 7 * i) % 1000 for i in range(context))) for seat in seats],
            )
            self.engine.run(draft)

    def free(self, batch: int) -> None:
        """Of the last `fill`."""
        self.engine.run(PlanDraft(frees=[(seat, self._generation) for seat in range(batch)]))

    def decode(self, batch: int, num_steps: int) -> tuple[list[float], list[StepOutput]]:
        """Seconds between the ends of neighbouring steps, two of them in flight, and what the steps left. A clock is
        used again by the third step after its own.
        """
        draft = PlanDraft(rows=[PlanRow(seat) for seat in range(batch)])
        self.engine.start(draft)
        ends: list[float] = []
        outputs: list[StepOutput] = []
        for _ in range(num_steps):
            self.engine.start(draft)
            ticket = self.engine.tickets[0]
            result = self.engine.receive()
            assert ticket.output is not None
            outputs.append(ticket.output)
            assert all(row.tokens for row in result.rows), "a row failed"
            ends.append(time.perf_counter())
        self.engine.receive()
        return [after - before for before, after in itertools.pairwise(ends)], outputs

    def close(self) -> None:
        """Ends its thread."""
        self.engine.close()


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    batches = (1, 4) if bed.dry else BATCHES
    bench = Bench(bed, max(batches), *((64, 512) if bed.dry else ()))
    steps = 4 if bed.dry else STEPS
    for batch in batches:
        bench.fill(batch)
        bench.decode(batch, 4)
        seconds = statistics.median(bench.decode(batch, steps)[0])
        floor = bed.decode_floor(batch, bench.context + steps / 2)
        peer = record.Peer("weights and KV at the card's bandwidth", batch / floor)
        record.report("gpu_decode", f"decode/{batch}", batch / seconds, "tokens/s", peer, TARGETS.get(batch))
        if batch in PROFILED:
            _profile(bench, batch, bed.out / "profile.txt")
        bench.free(batch)
    for length in (100, 400) if bed.dry else PREFILLS:
        _prefill(bench, bed, length)
    bench.close()


def _profile(bench: Bench, batch: int, path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        bench.decode(batch, 8)
    with path.open("a") as file:
        table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=80)
        file.write(f"batch {batch}, 9 decode steps\n{table}\n")


def _prefill(bench: Bench, bed: Bed, length: int) -> None:
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        bench.fill(1, length)
        times.append(time.perf_counter() - begin)
        bench.free(1)
    shape = bed.shape
    layers_flops = (shape.step_weight_bytes - 2 * shape.vocabulary * shape.hidden) * length
    attention_flops = 2 * shape.layers * shape.heads * shape.head_dim * length**2
    floor = (layers_flops + attention_flops) / bed.flops
    peer = record.Peer("products at the rate of 8192 x 8192", length / floor)
    record.report("gpu_decode", f"prefill/{length}", length / min(times), "tokens/s", peer)


if __name__ == "__main__":
    main()
