"""One step's answer: the columns of `StepResult`, built from what the device left and the host knew."""

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock_server.batch import RowReport
from penstock_server.row_status import RowStatus


@dataclass(frozen=True, slots=True)
class StepColumns:
    """What a step left on the host. S samples and R batch rows, padding included."""

    row_seats: NDArray[np.int64]  # [R], the pad seat in dead rows
    ids: NDArray[np.int64]  # [S], -1: no usable logits
    logprobs: NDArray[np.float32] | None  # [S]
    top_ids: NDArray[np.int64] | None  # [S, K]
    top_logprobs: NDArray[np.float32] | None  # [S, K]


@dataclass(frozen=True, slots=True)
class Answer:
    """The columns of a result. Tokens are listed in the order of the plan's rows."""

    rows: NDArray[np.int32]  # [N, 4]
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def ids_checksum(self) -> int:
        return zlib.crc32(self.token_ids.tobytes())


def answer(report: RowReport, columns: StepColumns | None, pad_seat: int) -> Answer:
    """Joins the host's verdict on each row with the device's. `columns` is None when no row ran."""
    num_rows = report.seats.size
    status = report.status.copy()
    sample_of_row = np.full(num_rows, -1, np.int64)
    tokens = np.full(num_rows, -1, np.int64)
    if columns is not None:
        num_samples = report.sample_rows.size
        sample_of_row[report.sample_rows] = np.arange(num_samples)
        tokens[report.sample_rows] = columns.ids[:num_samples]
        status[report.sample_rows[tokens[report.sample_rows] < 0]] = RowStatus.NAN
        dead = columns.row_seats[: report.batch_rows.size] == pad_seat
        status[report.batch_rows[dead]] = RowStatus.DEAD
    has_token = (status == RowStatus.OK) & (sample_of_row >= 0)
    rows = np.empty((num_rows, 4), np.int32)
    rows[:, 0], rows[:, 1], rows[:, 2] = report.seats, report.generations, report.positions
    rows[:, 3] = status | has_token.astype(np.int32) << 8
    wanted = sample_of_row[has_token & report.wants_logprobs]
    logprobs = np.empty(0, np.float32)
    if columns is not None and columns.logprobs is not None:
        logprobs = columns.logprobs[wanted]
    top_ids, top_logprobs = _top(report, columns, sample_of_row, has_token)
    return Answer(rows, tokens[has_token].astype(np.int32), logprobs, top_ids, top_logprobs)


def failed_answer(report: RowReport, status: RowStatus) -> Answer:
    """The answer of a step that did not end: rows that ran have `status`."""
    changed = report.status.copy()
    changed[report.batch_rows] = status
    nothing = report.batch_rows[:0]
    verdict = dataclasses.replace(report, status=changed, batch_rows=nothing, sample_rows=nothing)
    return answer(verdict, None, pad_seat=-1)


def _top(
    report: RowReport, columns: StepColumns | None, sample_of_row: NDArray[np.int64], has_token: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The first `num_top_logprobs` of each token of the seats that asked, one after another."""
    if columns is None or columns.top_ids is None or columns.top_logprobs is None:
        return np.empty(0, np.int32), np.empty(0, np.float32)
    rows = np.flatnonzero(has_token)
    samples = sample_of_row[rows]
    wanted = np.arange(columns.top_ids.shape[1]) < report.num_top_logprobs[rows, None]
    return columns.top_ids[samples][wanted].astype(np.int32), columns.top_logprobs[samples][wanted]
