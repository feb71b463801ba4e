"""One step on the device: seat edits, forward pass, sampling, and what the seats keep of it.

Runs on the thread that owns the device, never waits for the device, and decides nothing that depends on a value there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.logprobs import Logprobs
from penstock_server.batch import StagedStep, forward_batch
from penstock_server.graphs import CudaCapture, Forwarded, Graphs, can_capture
from penstock_server.kv_cache import KvCache
from penstock_server.models.base import Model
from penstock_server.parallel import TensorParallel
from penstock_server.plan_checks import PlanLimits
from penstock_server.recording import Recording
from penstock_server.results import StepColumns
from penstock_server.sampling import Sampler, SampleRows
from penstock_server.seats import DeviceSeats, SeatEdits
from penstock_server.staging import Staging
from penstock_server.step_clock import Moment, StepClock
from penstock_server.transfers import ResultBuffer, to_device


@dataclass(frozen=True, slots=True)
class StepParts:
    """What a step works on."""

    model: Model
    kv: KvCache
    seats: DeviceSeats
    sampler: Sampler | None  # rank 0 samples, the others receive
    parallel: TensorParallel
    staging: Staging


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's tensors on their way to the host, and its clock. Read before the entry of the ring is used again."""

    row_seats: torch.Tensor  # int64 [R]
    ids: torch.Tensor | None  # int64 [S]
    logprobs: Logprobs | None
    clock: StepClock

    def columns(self) -> StepColumns:
        """On the host. Waits for nothing: the step has ended."""
        ids = torch.empty(0, dtype=torch.int64) if self.ids is None else self.ids
        logprobs = self.logprobs
        return StepColumns(
            row_seats=self.row_seats.numpy(),
            ids=ids.numpy(),
            logprobs=None if logprobs is None else logprobs.chosen.numpy(),
            top_ids=None if logprobs is None else logprobs.top_ids.numpy(),
            top_logprobs=None if logprobs is None else logprobs.top.numpy(),
        )


class StepRunner:
    """Carries out staged steps in order."""

    def __init__(self, parts: StepParts, limits: PlanLimits) -> None:
        self._parts = parts
        self._device = parts.seats.device
        self.graphs = Graphs(self._forward, CudaCapture() if can_capture(self._device) else None)
        entries = range(parts.staging.num_entries)
        self._clocks = [StepClock(self._device) for _ in entries]
        self.results_stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self.results_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._results = [ResultBuffer(_result_bytes(limits), self._device, self.results_stream) for _ in entries]
        self._recording: Recording | None = None

    @torch.inference_mode()
    def run(self, staged: StagedStep | None, edits: SeatEdits) -> StepOutput | None:
        """Edits the seats, then runs the step if it has rows. Raises what torch raises, out of memory included."""
        if staged is None:
            self._edit(edits)
            return None
        self._clocks[staged.entry].note(Moment.START)
        self._edit(edits)
        output = self._run_rows(staged)
        if self._recording is not None and self._recording.step_ended():
            self._recording = None
        return output

    def _run_rows(self, staged: StagedStep) -> StepOutput:
        clock, results = self._clocks[staged.entry], self._results[staged.entry]
        results.clear()
        self._parts.staging.upload(staged.entry, staged.shape)
        clock.note(Moment.FORWARD_BEGINS, inside=False)
        forwarded = self.graphs.run(staged)
        clock.note(Moment.FORWARD_ENDS, inside=False)
        logits = forwarded.logits
        if logits is None and staged.shape.num_samples:
            logits = self._logits(forwarded.hidden, staged)
        ids, logprobs = (None, None) if logits is None else self._sample(staged, logits)
        output = StepOutput(
            row_seats=results.receive(forwarded.row_seats),
            ids=None if ids is None else results.receive(ids),
            logprobs=None if logprobs is None else Logprobs(*(results.receive(part) for part in logprobs)),
            clock=clock,
        )
        clock.note(Moment.END)
        results.send()  # last: who has seen the results come may read the clock
        return output

    @torch.inference_mode()
    def warm_up(self, staged: StagedStep) -> None:
        """Runs the forward part of one shape once."""
        self._parts.staging.upload(staged.entry, staged.shape)
        self._forward(staged)
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # the caller builds the next in the same host buffer

    @torch.inference_mode()
    def capture(self, staged: StagedStep, is_awaited: Callable[[], bool]) -> None:
        """See `Graphs.capture`."""
        self._parts.staging.upload(staged.entry, staged.shape)
        self.graphs.capture(staged, is_awaited)

    @torch.inference_mode()
    def kill(self, seats: NDArray[np.int64]) -> None:
        """Makes seats dead until they are registered again."""
        self._parts.seats.kill(to_device(seats, self._device))

    @torch.inference_mode()
    def clear(self) -> None:
        """Forgets every seat."""
        self._parts.seats.clear()
        if self._parts.sampler is not None:
            self._parts.sampler.clear()

    def profile(self, num_steps: int, folder: Path) -> None:
        """Records the next `num_steps` steps; a recording that runs already goes on instead."""
        if self._recording is None:
            self._recording = Recording(num_steps, folder)

    def _edit(self, edits: SeatEdits) -> None:
        if self._parts.sampler is not None:
            if edits.freed.size:
                self._parts.sampler.release(edits.freed)
            if len(edits.registrations):
                self._parts.sampler.register(edits.registrations)
        self._parts.seats.apply(edits)

    def _forward(self, staged: StagedStep) -> Forwarded:
        parts, clock = self._parts, self._clocks[staged.entry]
        prepared = forward_batch(parts.staging.device(staged.shape), staged, parts.seats, parts.kv.tokens_per_block)
        clock.note(Moment.FORWARD_BEGINS, inside=True)
        hidden = parts.model.forward(prepared.batch, parts.kv)
        clock.note(Moment.FORWARD_ENDS, inside=True)
        logits = self._logits(hidden, staged) if staged.shape.decode and staged.shape.num_samples else None
        return Forwarded(prepared.row_seats, hidden, logits)

    def _logits(self, hidden: torch.Tensor, staged: StagedStep) -> torch.Tensor:
        """float32 [S, V] of the step's samples."""
        columns = self._parts.staging.device(staged.shape)
        return self._parts.model.logits(hidden.index_select(0, columns.logits_index))

    def _sample(self, staged: StagedStep, logits: torch.Tensor) -> tuple[torch.Tensor, Logprobs | None]:
        """Rank 0 chooses; every rank stores the same ids. A row without usable logits has id -1."""
        parts, columns = self._parts, self._parts.staging.device(staged.shape)
        rows = SampleRows(columns.sample_seats, columns.sample_positions, staged.host_sample_seats)
        if parts.sampler is not None and parts.parallel.size == 1:
            sampled = parts.sampler.sample_into(logits, rows, parts.seats)
            return sampled.ids, sampled.logprobs
        seats = parts.seats.alias.index_select(0, columns.sample_seats)
        logprobs, ids = None, torch.empty_like(seats)
        if parts.sampler is not None:
            sampled = parts.sampler.sample(logits, SampleRows(seats, rows.positions, rows.host_seats))
            logprobs, ids = sampled.logprobs, torch.where(sampled.bad, -1, sampled.ids)
        parts.parallel.broadcast(ids)
        parts.seats.store(seats, ids)
        return ids, logprobs


def _result_bytes(limits: PlanLimits) -> int:
    """Most bytes that a step sends back: per row its seat, id and log-probability, and the best ids with theirs."""
    int64, float32 = 8, 4
    columns = 2 * int64 + float32 + limits.max_top_logprobs * (int64 + float32)
    return limits.max_rows * columns + 8 * int64  # each column begins aligned
