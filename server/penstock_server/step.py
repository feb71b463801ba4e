"""One step on the device: seat edits, forward pass, sampling, and what the seats keep of it.

Runs on the thread that owns the device, never waits for the device, and decides nothing that depends on a value there.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock_kernels.logprobs import Logprobs
from penstock_server.batch import StagedStep, forward_batch
from penstock_server.graphs import Forwarded, Graphs
from penstock_server.kv_cache import KvCache
from penstock_server.models.base import Model
from penstock_server.parallel import TensorParallel
from penstock_server.recording import Recording
from penstock_server.results import StepColumns
from penstock_server.sampling import Sampler, SampleRows
from penstock_server.seats import DeviceSeats, SeatEdits
from penstock_server.staging import Staging

Moment = float | torch.cuda.Event


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
    """A step's tensors on their way to the host, and when its parts ended."""

    row_seats: torch.Tensor  # int64 [R]
    ids: torch.Tensor | None  # int64 [S]
    logprobs: Logprobs | None
    moments: tuple[Moment, Moment, Moment, Moment]  # start, forward begins, forward ends, end

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

    def times_us(self) -> tuple[int, int]:
        """Microseconds of the whole step, and of the model's forward pass in it."""
        start, forward_start, forward_end, end = self.moments
        return _elapsed_us(start, end), _elapsed_us(forward_start, forward_end)


class StepRunner:
    """Carries out staged steps in order."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._device = parts.seats.device
        self._graphs = Graphs(self._forward, self._device)
        self._forward_moments: tuple[Moment, Moment] = (0.0, 0.0)
        self._recording: Recording | None = None

    @torch.inference_mode()
    def run(self, staged: StagedStep | None, edits: SeatEdits) -> StepOutput | None:
        """Edits the seats, then runs the step if it has rows. Raises what torch raises, out of memory included."""
        start = self._moment()
        self._edit(edits)
        if staged is None:
            return None
        output = self._run_rows(staged, start)
        if self._recording is not None and self._recording.step_ended():
            self._recording = None
        return output

    def _run_rows(self, staged: StagedStep, start: Moment) -> StepOutput:
        parts = self._parts
        parts.staging.upload(staged.entry, staged.shape)
        forwarded = self._graphs.run(staged)
        ids, logprobs = self._sample(staged, forwarded)
        row_seats = self._to_host(forwarded.row_seats)
        return StepOutput(row_seats, ids, logprobs, (start, *self._forward_moments, self._moment()))

    @torch.inference_mode()
    def warm_up(self, staged: StagedStep) -> None:
        """Runs the forward part at one size once, and captures it where that is possible."""
        self._parts.staging.upload(staged.entry, staged.shape)
        self._graphs.warm_up(staged)

    @torch.inference_mode()
    def kill(self, seats: torch.Tensor) -> None:
        """Makes seats (int64) dead until they are registered again."""
        self._parts.seats.kill(seats.to(self._device))

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
        parts = self._parts
        prepared = forward_batch(parts.staging.device(staged.shape), staged, parts.seats, parts.kv.tokens_per_block)
        forward_start = self._moment()
        hidden = parts.model.forward(prepared.batch, parts.kv)
        self._forward_moments = (forward_start, self._moment())
        if not staged.shape.num_samples:
            return Forwarded(prepared.row_seats, None)
        logits = parts.model.logits(hidden.index_select(0, prepared.batch.logits_index))
        return Forwarded(prepared.row_seats, logits)

    def _sample(self, staged: StagedStep, forwarded: Forwarded) -> tuple[torch.Tensor | None, Logprobs | None]:
        """Rank 0 chooses; every rank stores the same ids. A row without usable logits has id -1."""
        if forwarded.logits is None:
            return None, None
        parts, columns = self._parts, self._parts.staging.device(staged.shape)
        seats = parts.seats.alias.index_select(0, columns.sample_seats)
        logprobs = None
        if parts.sampler is not None:
            rows = SampleRows(seats, columns.sample_positions, staged.host_sample_seats)
            sampled = parts.sampler.sample(forwarded.logits, rows)
            ids = torch.where(sampled.bad, -1, sampled.ids)
            if sampled.logprobs is not None:
                logprobs = Logprobs(*(self._to_host(part) for part in sampled.logprobs))
        else:
            ids = torch.empty_like(seats)
        if parts.parallel.size > 1:
            parts.parallel.broadcast(ids)
        parts.seats.store(seats, ids)
        return self._to_host(ids), logprobs

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in (pinned) host memory once the stream gets there."""
        if self._device.type == "cpu":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _moment(self) -> Moment:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = _timing_event()
        event.record()
        return event


def _timing_event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


def _elapsed_us(begin: Moment, end: Moment) -> int:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return round(float(begin.elapsed_time(end)) * 1000)
    assert isinstance(begin, float)
    assert isinstance(end, float)
    return round((end - begin) * 1e6)
