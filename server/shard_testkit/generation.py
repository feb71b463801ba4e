"""Greedy generation by plans, through whatever takes plans: an engine in this process or a shard over gRPC."""

from typing import Protocol

from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.row_status import RowStatus
from shard_testkit.results import Result


class TakesPlans(Protocol):
    """`LocalEngine` and `ShardGroup` do."""

    def submit(self, plan_id: int, blob: bytes) -> None: ...

    def receive(self) -> Result: ...


def generate(shard: TakesPlans, prompts: list[list[int]], num_new: int, tokens_per_block: int) -> list[list[int]]:
    """`num_new` tokens after each prompt: all prompts in one step, then steps of one token a row, two in flight.

    Seat s is that of prompt s, in generation 1, and may go on to the end of its last block; the plans are 1 to
    `num_new`.
    """
    registrations, appends, next_block = [], [], 1
    for seat, prompt in enumerate(prompts):
        num_blocks = -(-(len(prompt) + num_new) // tokens_per_block)
        registrations.append(NewSeat(seat, 1, len(prompt), num_blocks * tokens_per_block))
        for index in range(num_blocks):
            appends.append((seat, 0, index, next_block))
            next_block += 1
    rows = [PlanRow(seat, ids=tuple(prompt)) for seat, prompt in enumerate(prompts)]
    shard.submit(1, PlanDraft(registrations=registrations, appends=appends, rows=rows).encode())
    continued = PlanDraft(rows=[PlanRow(seat) for seat in range(len(prompts))]).encode()
    answers: list[list[int]] = [[] for _ in prompts]
    for plan_id in range(2, num_new + 2):
        if plan_id <= num_new:
            shard.submit(plan_id, continued)
        for seat, row in enumerate(shard.receive().rows):
            assert row.status == RowStatus.OK
            answers[seat] += row.tokens
    return answers
