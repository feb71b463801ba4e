"""Per-seat state of a shard, edited by plans in their order: on the host what can be known before a step has run, on
the device what a step produces (the last token, whether the seat died) and the block table.

Host state belongs to the thread that launches; device state to the thread or stream that runs the steps. Both see the
same edits in the same order. Knows nothing of sampling.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.prepare_step import SeatState
from penstock_server.plan import Plan, append_targets
from penstock_server.plan_checks import PlanError, check_distinct
from penstock_server.plan_records import NO_REGISTRATIONS
from penstock_server.registrations import SeatFlag, SeatRegistrations, Word
from penstock_server.transfers import to_device


@dataclass(frozen=True, slots=True)
class SeatEdits:
    """What one plan changes in the device state, in this order. Its arrays are its own."""

    freed: NDArray[np.int64]  # [F]
    registrations: SeatRegistrations
    registered: NDArray[np.int64]  # [N]
    append_targets: NDArray[np.int64]  # [A], index in the flat block table
    append_blocks: NDArray[np.int32]  # [A]


class SeatTable:
    """Host state of `num_seats` seats."""

    def __init__(self, num_seats: int, blocks_per_seat: int, tokens_per_block: int) -> None:
        self.num_seats = num_seats
        self.blocks_per_seat = blocks_per_seat
        self.tokens_per_block = tokens_per_block
        self.generation = np.zeros(num_seats, np.int32)  # 0: not registered
        self._last_generation = np.zeros(num_seats, np.int32)
        self.length = np.zeros(num_seats, np.int64)  # tokens fed, as if no row had failed
        self.max_len = np.zeros(num_seats, np.int64)
        self.granted_tokens = np.zeros(num_seats, np.int64)  # positions below this have a block
        self.failed = np.ones(num_seats, bool)  # not registered, or a row of it failed for a reason known to the host
        self.fresh = np.zeros(num_seats, bool)  # registered and not fed yet
        self.sampled = np.zeros(num_seats, bool)  # its last row sampled: there is a token to continue from
        self.wants_logprobs = np.zeros(num_seats, bool)
        self.num_top_logprobs = np.zeros(num_seats, np.int64)
        self._penalty_lane = np.full(num_seats, -1, np.int32)
        # Mirror of the device's table: tells how far a seat's blocks reach without a hole.
        self._block_table = np.zeros((num_seats, blocks_per_seat), np.int32)
        nothing = np.empty(0, np.int64)
        self._no_edits = SeatEdits(nothing, NO_REGISTRATIONS, nothing, nothing, nothing.astype(np.int32))

    def apply(self, plan: Plan) -> SeatEdits:
        """Edits the host state and returns the same edits for the device. Raises PlanError."""
        if plan.frees.size:
            self._free(plan.frees[:, 0], plan.frees[:, 1])
        if len(plan.registrations):
            self._register(plan.registrations)
        if plan.appends.size:
            self._append(plan.appends)
        if not (plan.frees.size or len(plan.registrations) or plan.appends.size):
            return self._no_edits
        return SeatEdits(
            freed=plan.frees[:, 0].astype(np.int64),
            registrations=plan.registrations,
            registered=plan.registrations.ints(Word.SEAT).astype(np.int64),
            append_targets=append_targets(plan.appends, self.blocks_per_seat),
            append_blocks=plan.appends[:, 3].copy(),
        )

    def clear(self) -> None:
        """Frees every seat."""
        self.generation[:] = 0
        self._last_generation[:] = 0
        self.failed[:] = True
        self._penalty_lane[:] = -1

    def _free(self, seats: NDArray[np.int32], generations: NDArray[np.int32]) -> None:
        if (wrong := self.generation[seats] != generations).any():
            seat, generation = int(seats[wrong][0]), int(generations[wrong][0])
            raise PlanError(f"free of seat {seat} generation {generation}: it holds {self.generation[seat]}")
        self.generation[seats] = 0
        self.failed[seats] = True
        self._penalty_lane[seats] = -1

    def _register(self, new: SeatRegistrations) -> None:
        seats, generations = new.ints(Word.SEAT), new.ints(Word.GENERATION)
        if (taken := self.generation[seats] != 0).any():
            raise PlanError(f"seat {seats[taken][0]} is registered while it is not free")
        if (old := generations <= self._last_generation[seats]).any():
            raise PlanError(f"generation {generations[old][0]} of seat {seats[old][0]} is not above its last one")
        self.generation[seats] = self._last_generation[seats] = generations
        self.max_len[seats] = new.ints(Word.MAX_LEN)
        self.length[seats] = 0
        self.granted_tokens[seats] = 0
        self.failed[seats] = False
        self.fresh[seats] = True
        self.sampled[seats] = False
        self.wants_logprobs[seats] = (new.ints(Word.FLAGS) & SeatFlag.LOGPROBS) != 0
        self.num_top_logprobs[seats] = new.ints(Word.NUM_TOP_LOGPROBS)
        self._block_table[seats] = 0
        self._penalty_lane[seats] = new.ints(Word.PENALTY_LANE)
        check_distinct("penalty_lane", self._penalty_lane[self._penalty_lane >= 0])

    def _append(self, appends: NDArray[np.int32]) -> None:
        seats = appends[:, 0]
        if (free := self.generation[seats] == 0).any():
            raise PlanError(f"block append to seat {seats[free][0]}, which is not registered")
        self._block_table[seats, appends[:, 2]] = appends[:, 3]
        holes = self._block_table[seats] == 0
        num_blocks = np.where(holes.any(axis=1), holes.argmax(axis=1), self.blocks_per_seat)
        self.granted_tokens[seats] = num_blocks * self.tokens_per_block


class DeviceSeats:
    """Device state of the seats, and of one more, the pad seat, whose table is all zeros: padded rows belong to it.

    `alias[seat]` is the seat whose table and last token a row of `seat` uses: itself, or the pad seat once it is dead.
    """

    def __init__(self, num_seats: int, blocks_per_seat: int, device: torch.device) -> None:
        self.pad_seat = num_seats
        self.device = device
        self.block_table = torch.zeros((num_seats + 1, blocks_per_seat), dtype=torch.int32, device=device)
        self.flat_table = self.block_table.view(-1)
        self.last_token = torch.zeros(num_seats + 1, dtype=torch.int64, device=device)
        self.alias = torch.full((num_seats + 1,), num_seats, dtype=torch.int64, device=device)
        self.state = SeatState(self.alias, self.last_token, self.block_table)

    def apply(self, edits: SeatEdits) -> None:
        """Registrations zero the seats' tables and revive them; appends fill entries. Freed seats need nothing."""
        if edits.registered.size:
            seats = to_device(edits.registered, self.device)
            self.block_table.index_fill_(0, seats, 0)
            self.last_token.index_fill_(0, seats, 0)
            self.alias.index_copy_(0, seats, seats)
        if edits.append_targets.size:
            targets = to_device(edits.append_targets, self.device)
            self.flat_table.index_copy_(0, targets, to_device(edits.append_blocks, self.device))

    def store(self, seats: torch.Tensor, ids: torch.Tensor) -> None:
        """Keeps sampled ids [S] as the last tokens of `seats` [S] (aliases); a row of id -1 kills its seat."""
        failed = ids < 0
        self.last_token.index_copy_(0, seats, ids.clamp_min(0))
        self.alias.index_copy_(0, seats, torch.where(failed, self.pad_seat, seats))

    def kill(self, seats: torch.Tensor) -> None:
        """Makes seats dead until they are registered again."""
        self.alias.index_fill_(0, seats, self.pad_seat)

    def clear(self) -> None:
        """Makes every seat dead."""
        self.alias.fill_(self.pad_seat)
        self.block_table.zero_()
