"""What the host does for a decode step, from the decoded plan to its last operation, at 256 rows with the replay of its
graph replaced by nothing: checks, staging, sampling, results. On a CPU the operations of sampling are in it, which on a
GPU run meanwhile; staging is without them."""

import statistics
import tempfile
import time
from pathlib import Path

import record
import torch
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference
from shard_testkit.results import Result

from penstock_server.graphs import Forwarded
from penstock_server.plan import Plan, decode_plan
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.row_status import RowStatus

ROWS = 256
VOCAB_SIZE = 64
BLOCKS_PER_ROW = 15
STEPS = 200
TARGET_US = 150


def engine() -> LocalEngine:
    """256 rows that decode, and nothing else to do."""
    with tempfile.TemporaryDirectory() as folder:
        model = integer_model(IntegerReference(vocab_size=VOCAB_SIZE), Path(folder))
    sizes = EngineSizes(
        num_seats=2 * ROWS, num_blocks=4096, tokens_per_block=16, max_rows=ROWS, max_tokens=2048, max_seq_len=4096
    )
    bench = LocalEngine(model, sizes, inline=True)
    blocks = range(BLOCKS_PER_ROW)
    draft = PlanDraft(
        registrations=[NewSeat(seat, 1, 5, sizes.max_seq_len) for seat in range(ROWS)],
        appends=[(seat, 0, index, 1 + seat * BLOCKS_PER_ROW + index) for seat in range(ROWS) for index in blocks],
        rows=[PlanRow(seat, ids=(1, 2, 3, 4, 5)) for seat in range(ROWS)],
    )
    bench.run(draft)
    bench.run(PlanDraft(rows=[PlanRow(seat) for seat in range(ROWS)]))
    hidden, logits = torch.zeros(ROWS, 1), torch.zeros(ROWS, VOCAB_SIZE)
    model.forward = lambda batch, kv: hidden
    model.logits = lambda hidden: logits
    bench.replay_steps()
    left = Forwarded(torch.arange(ROWS), hidden, logits)
    bench.engine._runner.graphs._capture = lambda function, staged: (lambda: None, left)
    bench.engine.capture(ROWS, True)
    return bench


def main() -> None:
    torch.set_num_threads(1)
    bench = engine()
    blob = PlanDraft(rows=[PlanRow(seat) for seat in range(ROWS)], same_rows=True).encode()
    decoded, launched, staged = [], [], []
    builder = bench.engine._builder
    build = builder.build

    def timed(*arguments: object) -> object:
        begin = time.perf_counter_ns()
        result = build(*arguments)
        staged.append(time.perf_counter_ns() - begin)
        return result

    builder.build = timed
    for plan_id in range(3, 3 + STEPS):
        begin = time.perf_counter_ns()
        plan: Plan = decode_plan(plan_id, blob, bench.previous, bench.limits)
        between = time.perf_counter_ns()
        bench.previous, bench.newest_plan_id = plan.rows, plan_id
        ticket = bench.engine.launch(plan)
        launched.append(time.perf_counter_ns() - between)
        decoded.append(between - begin)
        rows = Result.parse(bench.engine.collect(ticket)).rows
        assert len(rows) == ROWS
        assert {row.status for row in rows} == {RowStatus.OK}
    target = record.Peer("target, on a GPU's host", TARGET_US)
    for case, values in (("launch", launched), ("of it staging", staged), ("decode_plan", decoded)):
        peer = target if case == "launch" else None
        record.report("host_step", f"{case}_us, {ROWS} rows", statistics.median(values) / 1000, "us", peer)


if __name__ == "__main__":
    main()
