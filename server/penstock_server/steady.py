"""Decode steps that repeat the rows of the one before, which most steps are: only positions and lengths change."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock_server.plan import Plan, RowSet
from penstock_server.seats import SeatTable
from penstock_server.staging import HostColumns, Staging

if TYPE_CHECKING:
    from penstock_server.batch import RowReport, StagedStep


class SteadyDecode:
    """The last decode step whose rows could all run, and the entries of the staging ring that hold its columns."""

    def __init__(self) -> None:
        self._rows: RowSet | None = None
        self._report: RowReport | None = None
        self._max_len: NDArray[np.int64] = np.empty(0, np.int64)
        self._entries: dict[int, tuple[StagedStep, HostColumns]] = {}

    def forget(self) -> None:
        """Somebody else has written to the ring."""
        self._rows, self._entries = None, {}

    def remember(self, plan: Plan, seats: SeatTable, staged: "StagedStep", report: "RowReport", ring: Staging) -> None:
        """Takes note of a step as it was built at length."""
        all_run = staged.shape.decode and report.sample_rows.size == report.seats.size and not plan.extents.size
        if not all_run:
            self.forget()
            return
        known = self._rows is plan.rows and all(kept.shape == staged.shape for kept, _ in self._entries.values())
        if not known:
            self._rows, self._entries = plan.rows, {}
            self._max_len = seats.max_len[plan.rows.seats]
        self._report = report
        self._entries[staged.entry] = staged, ring.host(staged.entry, staged.shape)

    def build(self, plan: Plan, seats: SeatTable, entry: int) -> "tuple[StagedStep, RowReport] | None":
        """The next step, with the seats advanced; None where it has to be built at length."""
        last = self._report
        if last is None or plan.rows is not self._rows or plan.frees.size or len(plan.registrations):
            return None
        if entry not in self._entries:
            return None
        staged, columns = self._entries[entry]
        shape, starts, row_seats = staged.shape, last.positions, plan.rows.seats
        ends = starts + 1
        if plan.padded_rows not in (0, shape.num_rows) or int(ends.max()) > shape.table_width * seats.tokens_per_block:
            return None
        if ((ends >= self._max_len) | (ends > seats.granted_tokens[row_seats])).any():
            return None
        seats.length[row_seats] = ends
        num_rows = starts.size
        columns.positions[:num_rows] = starts
        np.floor_divide(columns.positions, seats.tokens_per_block, out=columns.table_entries)
        np.remainder(columns.positions, seats.tokens_per_block, out=columns.block_offsets)
        columns.seq_lens[:num_rows] = ends
        columns.sample_positions[:num_rows] = ends
        self._report = type(last)(
            seats=last.seats,
            generations=last.generations,
            positions=ends,
            status=last.status,
            batch_rows=last.batch_rows,
            sample_rows=last.sample_rows,
            wants_logprobs=last.wants_logprobs,
            num_top_logprobs=last.num_top_logprobs,
        )
        return staged, self._report
