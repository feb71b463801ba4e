"""What a plan costs beside its step: one plan of 256 decode rows in flight at a time, over the Step stream of a real
shard process, from its sending to its result, less the time that the step took on the device. A part of
`gpu_report.py`."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_bed
import record
from shard_testkit.integer import IntegerReference
from shard_testkit.process import ShardGroup

from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow

ROWS, STEPS = 256, 200
PROMPT = 5


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    rows, steps = (8, 10) if bed.dry else (ROWS, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        # The model with the shortest steps.
        path = IntegerReference(vocab_size=64).write_config(Path(folder))
        sizes: dict[str, Any] = {
            "num_seats": 2 * rows,
            "max_rows": rows,
            "max_step_tokens": 2048,
            "max_seq_len": 512,
            "tokens_per_block": 16,
            "num_blocks": rows * 32 + 1,
            "fill_kv_with_nan": False,
        }
        with ShardGroup(path, device=bed.device.type, **sizes) as group:
            group.open()
            times = list(turnarounds(group, rows, steps))
            group.half_close()
    record.report("gpu_turnaround", f"{rows} rows/p50", statistics.median(times), "us")
    record.report("gpu_turnaround", f"{rows} rows/p99", sorted(times)[int(0.99 * len(times))], "us")


def turnarounds(group: ShardGroup, rows: int, steps: int) -> Any:
    """Microseconds of each decode step's."""
    first = PlanDraft(
        registrations=[NewSeat(seat, 1, PROMPT, 512) for seat in range(rows)],
        appends=[(seat, 0, index, 1 + 32 * seat + index) for seat in range(rows) for index in range(32)],
        rows=[PlanRow(seat, ids=tuple(range(1, PROMPT + 1))) for seat in range(rows)],
    )
    blobs = [first.encode(), PlanDraft(rows=[PlanRow(seat) for seat in range(rows)]).encode()]
    blobs += [PlanDraft(rows=[PlanRow(seat) for seat in range(rows)], same_rows=True).encode()] * steps
    [call] = group._calls
    for plan_id, blob in enumerate(blobs, start=1):
        begin = time.perf_counter()
        call.send_plan(plan_id, blob)
        result = call.result()
        if plan_id > 2:
            yield (time.perf_counter() - begin) * 1e6 - result.step_us


if __name__ == "__main__":
    main()
