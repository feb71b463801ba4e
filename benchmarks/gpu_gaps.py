"""How long the device does nothing between one decode step's end and the next one's start, by the steps' own clocks,
over 200 steps at batch 1 and 64, greedy and drawn. A part of `gpu_report.py`."""

import itertools

import gpu_bed
import record
from gpu_decode import Bench

BATCHES = (1, 64)
STEPS = 200
TARGET_US = 20


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    batches, steps = ((1, 4), 12) if bed.dry else (BATCHES, STEPS)
    bench = Bench(bed, max(batches), *((64, 512) if bed.dry else ()))
    for batch, samples in itertools.product(batches, (False, True)):
        bench.fill(batch, samples=samples)
        bench.decode(batch, 4)
        gaps = sorted(step_gaps(bench, batch, steps))
        case = f"{'drawn' if samples else 'greedy'}/{batch}"
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            gap = gaps[min(len(gaps) - 1, int(share * len(gaps)))]
            record.report("gpu_gaps", f"{case}/{name}", gap, "us", record.Peer("limit", TARGET_US))
        bench.free(batch)
    bench.close()
    print("skipped: a row with a mask: the shard takes no masks yet (FEATURE_GRAMMAR_MASKS)")


def step_gaps(bench: Bench, batch: int, num_steps: int) -> list[float]:
    """Microseconds between neighbouring steps, of `num_steps` in all.

    Read while both clocks still hold their steps: a step's is used again by the third after it.
    """
    gaps: list[float] = []
    while len(gaps) < num_steps:
        _, outputs = bench.decode(batch, 2)
        gaps.append(outputs[0].clock.gap_us(outputs[1].clock))
    return gaps


if __name__ == "__main__":
    main()
