"""Sampling on the device: the choice of each row's next token.

Shapes: S rows that sample (padded), V vocabulary, K top-n logprobs. The arithmetic is in `penstock_kernels`, the
parameters in `seat_params.py`; this file knows the order of the stages, and launches only those that some row of the
step needs. A stage leaves a row that does not need it as it is, bit for bit, so a row's token does not depend on its
neighbours.

Order, as in transformers 5: bias, bans, minimum length, repetition penalty, frequency and presence penalties; then,
in rows that sample, temperature, top-k, top-p, min-p, typical-p and the draw.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.logprobs import Logprobs, logprobs
from penstock_kernels.penalties import NEUTRAL_EDIT, add_at, count_tokens, penalize_counts, penalize_repetition
from penstock_kernels.philox import Purpose, uniform
from penstock_kernels.sample import draw, greedy, host_rows
from penstock_kernels.sample_step import SampleBuffers, StepRows, sample_step
from penstock_kernels.sample_tables import EDITING, LOGPROBS, PENALTIES, WARPING, Stage
from penstock_kernels.sample_workspace import SLICE_ROWS, SampleWorkspace
from penstock_kernels.triton_support import uses_triton
from penstock_kernels.warpers import Warper, warp
from penstock_server.registrations import SeatRegistrations
from penstock_server.seat_params import EditTable, RowParams, SeatParams
from penstock_server.seats import DeviceSeats

_WARPERS = {
    Warper.TEMPERATURE: Stage.TEMPERATURE,
    Warper.TOP_K: Stage.TOP_K,
    Warper.TOP_P: Stage.TOP_P,
    Warper.MIN_P: Stage.MIN_P,
    Warper.TYPICAL_P: Stage.TYPICAL_P,
}


@dataclass(frozen=True, slots=True)
class SamplerSizes:
    """What a sampler is made for."""

    num_seats: int
    num_lanes: int
    vocab_size: int
    max_rows: int  # of a step
    max_top_logprobs: int  # of a row


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The rows of a step that sample, in the order of their logits. Padded rows name `Sampler.padding_seat`."""

    seats: torch.Tensor  # int64 [S]
    positions: torch.Tensor  # int64 [S], position of the token being sampled; anything in padded rows
    host_seats: NDArray[np.int64]  # [S], the same seats on the host: decides which stages are launched


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """What a step sampled. The tensors live on the sampler's device, until its next step."""

    ids: torch.Tensor  # int64 [S], 0 in bad rows
    bad: torch.Tensor  # bool [S]: a NaN or +inf in the row's logits, or nothing finite left to choose
    logprobs: Logprobs | None  # [S] and [S, K], meaningful in rows that asked; None if none did


class Sampler:
    """Per-seat sampling state of one rank. All its device work is ordered on the compute stream; `sample` never waits.

    Belongs to one thread: the one that runs the steps.
    """

    def __init__(self, sizes: SamplerSizes, device: torch.device) -> None:
        self.padding_seat = sizes.num_seats
        self._params = SeatParams(sizes.num_seats, sizes.num_lanes, sizes.vocab_size, device)
        if uses_triton(self._params.history):
            limits = (sizes.max_rows, sizes.vocab_size, sizes.max_top_logprobs)
            self._chooser: _Stages | _Fused = _Fused(self._params, SampleBuffers(limits, device))
        else:
            self._chooser = _Stages(self._params, SampleWorkspace(sizes.vocab_size, device))

    def register(self, registrations: SeatRegistrations) -> None:
        """Writes the seats' parameters and seeds their penalty lanes; before the step's `sample`, in plan order.

        The decoder has checked the records: seats, lanes and ids are in range, and no seat or lane occurs twice.
        """
        if len(registrations):
            self._params.register(registrations)

    def release(self, seats: NDArray[np.int64]) -> None:
        """Makes freed seats greedy ones without a lane, so that a late row of theirs touches nobody's counts."""
        if seats.size:
            self._params.release(seats)

    def clear(self) -> None:
        """Releases every seat (a new Step stream)."""
        self._params.release(np.arange(self.padding_seat))

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> SampleOutput:
        """Chooses a token for each row of float32 logits [S, V], which stay as they are."""
        return self._chooser.sample(logits, rows, self._wanted(rows))

    def sample_into(self, logits: torch.Tensor, rows: SampleRows, seats: DeviceSeats) -> SampleOutput:
        """As `sample`, but `rows` name seats whose aliases are to be taken, and the seats keep their tokens. A bad row
        has id -1, and its seat is dead.
        """
        return self._chooser.sample_into(logits, rows, self._wanted(rows), seats)

    def _wanted(self, rows: SampleRows) -> Stage:
        return Stage(int(np.bitwise_or.reduce(self._params.stages[rows.host_seats], initial=0)))


class _Fused:
    """All stages in a few launches."""

    def __init__(self, params: SeatParams, buffers: SampleBuffers) -> None:
        self._params, self._buffers = params, buffers

    def sample(self, logits: torch.Tensor, rows: SampleRows, wanted: Stage) -> SampleOutput:
        return self._run(logits, StepRows(rows.seats, rows.positions), rows, wanted)

    def sample_into(self, logits: torch.Tensor, rows: SampleRows, wanted: Stage, seats: DeviceSeats) -> SampleOutput:
        return self._run(logits, StepRows(rows.seats, rows.positions, seats.state), rows, wanted)

    def _run(self, logits: torch.Tensor, step_rows: StepRows, rows: SampleRows, wanted: Stage) -> SampleOutput:
        found = sample_step(logits, step_rows, self._params.tables, wanted, self._buffers)
        if not wanted & LOGPROBS:
            return SampleOutput(found.ids, found.bad, None)
        width = int(self._params.num_top_logprobs[rows.host_seats].max())
        chosen, top_ids, top = found.logprobs
        return SampleOutput(found.ids, found.bad, Logprobs(chosen, top_ids[:, :width], top[:, :width]))


class _Stages:
    """One operation after another, those that some row of the step needs, on slices of the rows."""

    def __init__(self, params: SeatParams, workspace: SampleWorkspace) -> None:
        self._params, self._workspace = params, workspace

    def sample(self, logits: torch.Tensor, rows: SampleRows, wanted: Stage) -> SampleOutput:
        if not wanted:
            return SampleOutput(*greedy(logits), None)
        # Every slice launches what the step needs, so that all have the same outputs.
        width = int(self._params.num_top_logprobs[rows.host_seats].max())
        parts = [
            _Slice(self._params, self._workspace, rows, slice(start, start + SLICE_ROWS), wanted).run(logits, width)
            for start in range(0, len(rows.host_seats), SLICE_ROWS)
        ]
        ids, bad = _join([part[0] for part in parts]), _join([part[1] for part in parts])
        if not wanted & LOGPROBS:
            return SampleOutput(ids, bad, None)
        columns = zip(*(part[2] for part in parts if part[2] is not None), strict=True)
        return SampleOutput(ids, bad, Logprobs(*(_join(list(column)) for column in columns)))

    def sample_into(self, logits: torch.Tensor, rows: SampleRows, wanted: Stage, seats: DeviceSeats) -> SampleOutput:
        own = seats.alias.index_select(0, rows.seats)
        output = self.sample(logits, SampleRows(own, rows.positions, rows.host_seats), wanted)
        ids = torch.where(output.bad, -1, output.ids)
        seats.store(own, ids)
        return SampleOutput(ids, output.bad, output.logprobs)


class _Slice:
    """Up to SLICE_ROWS rows on their way through the stages, in the workspace's buffers."""

    def __init__(
        self, params: SeatParams, workspace: SampleWorkspace, rows: SampleRows, part: slice, wanted: Stage
    ) -> None:
        self._params = params
        self._workspace = workspace
        self._part = part
        self._wanted = wanted
        self._host_seats = rows.host_seats[part]
        self._host_stages = params.stages[self._host_seats]
        self._seats = rows.seats[part]
        self._positions = rows.positions[part]
        self._row: RowParams = params.gather(self._seats)

    def run(self, logits: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor, Logprobs | None]:
        """ids, bad and log-probabilities of this slice of `logits` [S, V]."""
        wanted, logits = self._wanted, logits[self._part]
        scores = logits
        if wanted & (EDITING | WARPING):
            scores = self._workspace.scores[: logits.shape[0]].copy_(logits)
        self._edit(scores)
        stages = {warper: self._rows(stage) for warper, stage in _WARPERS.items() if wanted & stage}
        if stages:
            warp(scores, self._row.warp, stages, self._workspace)
        ids, bad = self._choose(scores)
        ids.masked_fill_(bad, 0)
        if wanted & PENALTIES:
            count_tokens(self._params.history, self._row.lane, ids, ~bad)
        return ids, bad, self._logprobs(logits, scores, ids, num_top) if wanted & LOGPROBS else None

    def _rows(self, stage: Stage) -> torch.Tensor | None:
        """The rows of this slice that need one of the stages; None: run it on all."""
        return host_rows((self._host_stages & np.int32(stage)) != 0, self._seats.device)

    def _edit(self, scores: torch.Tensor) -> None:
        wanted, params, row = self._wanted, self._params, self._row
        if wanted & Stage.EDITS:
            rows = self._rows(Stage.EDITS)
            add_at(scores, rows, *self._edits_of(params.edits, Stage.EDITS, rows))
        if wanted & Stage.MIN_LENGTH:
            rows = self._rows(Stage.MIN_LENGTH)
            ids, values = self._edits_of(params.min_length, Stage.MIN_LENGTH, rows)
            short = _pick(row.too_short(self._positions), rows)
            add_at(scores, rows, ids, values.masked_fill_(~short[:, None], NEUTRAL_EDIT))
        for stage in (Stage.REPETITION, Stage.COUNTS):
            if wanted & stage:
                self._penalize(scores, stage)

    def _edits_of(self, table: EditTable, stage: Stage, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and values [rows, E] of a table, as wide as the rows that need the stage."""
        width = table.width(self._host_seats[(self._host_stages & np.int32(stage)) != 0])
        seats = _pick(self._seats, rows)
        return table.ids[:, :width].index_select(0, seats), table.values[:, :width].index_select(0, seats)

    def _penalize(self, scores: torch.Tensor, stage: Stage) -> None:
        workspace, row, rows = self._workspace, self._row, self._rows(stage)
        lanes = _pick(row.lane, rows)
        history = torch.index_select(self._params.history, 0, lanes, out=workspace.digits[: lanes.shape[0]])
        subset = self._subset(scores, rows)
        if stage == Stage.REPETITION:
            penalize_repetition(subset, history, _pick(row.repetition, rows), workspace)
        else:
            penalize_counts(subset, history, _pick(row.frequency, rows), _pick(row.presence, rows), workspace)
        if rows is not None:
            scores.index_copy_(0, rows, subset)

    def _choose(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and bad of the warped scores; no warper has touched the greedy rows."""
        if not self._wanted & Stage.SAMPLE:
            return greedy(scores)
        row, rows = self._row, self._rows(Stage.SAMPLE)
        numbers = uniform(row.key, row.fork, self._positions, Purpose.SAMPLE)
        drawn, undrawn = draw(self._subset(scores, rows), _pick(numbers, rows), self._workspace)
        if (self._host_stages & np.int32(Stage.SAMPLE)).all():
            return drawn, undrawn
        ids, bad = greedy(scores)
        if rows is None:
            return torch.where(row.samples, drawn, ids), torch.where(row.samples, undrawn, bad)
        return ids.index_copy_(0, rows, drawn), bad.index_copy_(0, rows, undrawn)

    def _logprobs(self, logits: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, num_top: int) -> Logprobs:
        workspace, rows = self._workspace, self._rows(LOGPROBS)
        if self._wanted & LOGPROBS == LOGPROBS and scores is not logits:
            source = torch.where(self._row.raw_logprobs[:, None], logits, scores, out=scores)
        else:
            source = logits if self._wanted & Stage.RAW_LOGPROBS else scores
        found = logprobs(self._subset(source, rows), _pick(ids, rows), num_top, workspace)
        if rows is None:
            return found
        num_rows = logits.shape[0]
        return Logprobs(*(part.new_zeros((num_rows, *part.shape[1:])).index_copy_(0, rows, part) for part in found))

    def _subset(self, scores: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The rows of `scores` that a stage works on: a copy in the workspace, or all of them in place."""
        if rows is None:
            return scores
        return torch.index_select(scores, 0, rows, out=self._workspace.subset[: rows.shape[0]])


def _pick(values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return values if rows is None else values.index_select(0, rows)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
