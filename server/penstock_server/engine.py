"""The engine: `launch(plan)` starts a step and never waits for the device, `collect(ticket)` waits for its answer.

On a CPU a launch hands the step to one in-order thread; on CUDA it queues the kernels, and that thread only waits for
the step's event. Everything else is the same. Knows nothing of streams, protobuf or the process.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from penstock_kernels.compilations import CompilationWatch
from penstock_server.batch import BatchBuilder, RowReport, StagedStep
from penstock_server.device_thread import DeviceThread
from penstock_server.graphs import GaveWay, can_capture
from penstock_server.messages import StepResult
from penstock_server.plan import Plan
from penstock_server.plan_checks import PlanLimits
from penstock_server.results import answer, failed_answer
from penstock_server.row_status import RowStatus
from penstock_server.seats import SeatEdits, SeatTable
from penstock_server.step import StepOutput, StepParts, StepRunner

logger = logging.getLogger(__name__)


class Ticket:
    """A plan in flight. The device thread owns its fields until `done`."""

    __slots__ = ("checksum", "done", "error", "next_plan_waiting", "output", "plan_id", "report")

    def __init__(self, plan: Plan, report: RowReport) -> None:
        self.plan_id = plan.plan_id
        self.checksum = plan.checksum
        self.report = report
        self.output: StepOutput | None = None
        self.error: Exception | None = None
        self.next_plan_waiting = False
        self.done = threading.Event()


@dataclass(frozen=True, slots=True)
class EngineHooks:
    """How the engine reaches the process around it. All are called on the device thread."""

    step_done: Callable[[], None]  # after every step; must not block
    newest_plan_id: Callable[[], int]  # of the plans received so far
    group_failed: Callable[[Exception], None]  # with several ranks: must end the process, the others wait for this one


class Engine:
    """Model, KV cache, seats and sampler of one rank. One thread launches and collects, in plan order."""

    def __init__(self, parts: StepParts, limits: PlanLimits, hooks: EngineHooks, thread: DeviceThread) -> None:
        self.limits = limits
        self._device = parts.seats.device
        self._is_cuda = self._device.type == "cuda"
        self._seats = SeatTable(limits.num_seats, limits.blocks_per_seat, parts.kv.tokens_per_block)
        self._builder = BatchBuilder(
            limits.decode_sizes, limits.mixed_sizes, limits.vocab_size, for_replay=can_capture(self._device)
        )
        self._staging = parts.staging
        self._pad_seat = parts.seats.pad_seat
        self._parallel = parts.parallel
        self._kv = parts.kv
        self.tokens_per_block = parts.kv.tokens_per_block
        self._runner = StepRunner(parts, limits)
        self._thread = thread
        self._hooks = hooks
        self._to_capture: deque[tuple[int, bool]] = deque()
        self._compilations = CompilationWatch()
        self._next_entry = 0
        self._step_ended = [_end_event() for _ in range(parts.staging.num_entries)] if self._is_cuda else []
        if self._is_cuda:
            # A thread begins on the first device: it would open a context there.
            thread.submit(lambda: torch.cuda.set_device(self._device))

    def launch(self, plan: Plan) -> Ticket:
        """Starts a step. Raises PlanError when the plan does not fit the seats; the stream has then to end."""
        edits = self._seats.apply(plan)
        entry = self._next_entry
        staged, report = self._builder.build(plan, self._seats, self._staging, entry)
        self._next_entry = (entry + 1) % self._staging.num_entries
        ticket = Ticket(plan, report)
        if self._is_cuda:
            self._run(ticket, staged, edits)
            event = self._step_ended[entry]
            # A step that sends results back has ended when they are there.
            event.record(self._runner.results_stream if ticket.output is not None else torch.cuda.current_stream())
            self._thread.submit(lambda: self._wait(ticket, event))
        else:
            self._thread.submit(lambda: self._run_here(ticket, staged, edits))
        return ticket

    def collect(self, ticket: Ticket) -> StepResult:
        """Waits for a step and returns its answer. Raises what the step raised, except out of memory, a row status."""
        ticket.done.wait()
        step_us, forward_us = 0, 0
        if ticket.error is not None:
            if not is_out_of_memory(ticket.error):
                raise ticket.error
            columns = failed_answer(ticket.report, RowStatus.OUT_OF_MEMORY)
        elif ticket.output is None:
            columns = answer(ticket.report, None, self._pad_seat)
        else:
            columns = answer(ticket.report, ticket.output.columns(), self._pad_seat)
            step_us, forward_us = ticket.output.clock.times_us()
        first = self._parallel.rank == 0
        return StepResult(
            plan_id=ticket.plan_id,
            plan_checksum=ticket.checksum,
            ids_checksum=columns.ids_checksum,
            rows=columns.rows.tobytes() if first else b"",
            token_ids=columns.token_ids.tobytes() if first else b"",
            logprobs=columns.logprobs.tobytes() if first else b"",
            top_ids=columns.top_ids.tobytes() if first else b"",
            top_logprobs=columns.top_logprobs.tobytes() if first else b"",
            step_us=step_us,
            forward_us=forward_us,
            next_plan_waiting=ticket.next_plan_waiting,
            num_kernels_compiled=self._compilations.take(),
        )

    def clear(self) -> None:
        """Forgets every seat. No plan may be in flight."""
        self._seats.clear()
        self._on_device(self._runner.clear)

    def warm_up(self, size: int, decode: bool) -> None:
        """Runs the forward part at one of the padded sizes. No plan may be in flight."""
        staged = self._builder.idle_step(size, decode, self._seats, self._staging)
        self._on_device(lambda: self._runner.warm_up(staged))

    def capture(self, size: int, decode: bool, is_awaited: Callable[[], bool] = lambda: False) -> None:
        """Captures the forward part of a size that has been warmed up, where that can be and is worth it. No plan may
        be in flight. Raises GaveWay as soon as `is_awaited()`.
        """
        staged = self._builder.idle_step(size, decode, self._seats, self._staging)
        self._on_device(lambda: self._runner.capture(staged, is_awaited))

    def expect_no_compilation(self) -> None:
        """From here on a kernel that is compiled is one that the warm-up missed."""
        self._compilations.start()

    def capture_later(self, sizes: Iterable[tuple[int, bool]]) -> None:
        """Leaves sizes, each with whether it is one of decode steps, to `use_idle_time`, where they can be captured."""
        if self._runner.graphs.can_capture:
            self._to_capture.extend(sizes)

    @property
    def num_ranks(self) -> int:
        """How many run the same steps."""
        return self._parallel.size

    @property
    def has_idle_work(self) -> bool:
        """Whether `use_idle_time` has something to do."""
        return bool(self._to_capture)

    def use_idle_time(self, is_awaited: Callable[[], bool]) -> None:
        """Captures one size, unless `is_awaited()` first; then it is tried again the next time."""
        size, decode = self._to_capture[0]
        begin = time.perf_counter()
        try:
            self.capture(size, decode, is_awaited)
        except GaveWay:
            return
        except torch.OutOfMemoryError:
            logger.warning("no memory for further graphs: mixed steps of %d tokens and fewer are launched", size)
            self._to_capture.clear()
            return
        self._to_capture.popleft()
        logger.debug("captured size %d in %.0f ms", size, (time.perf_counter() - begin) * 1000)

    def share(self, value: bool) -> bool:
        """Rank 0's value, on every rank."""
        flag = torch.tensor([int(value)], device=self._device)
        if self._parallel.size > 1:
            self._on_device(lambda: self._parallel.broadcast(flag))
        return bool(flag.item())

    def fill_kv(self, value: float) -> None:
        """Fills the whole KV pool, block 0 included. No plan may be in flight."""
        self._on_device(lambda: self._kv.fill(value))

    def profile(self, num_steps: int, folder: Path) -> None:
        """Records the next steps with torch's profiler, into a trace in `folder`."""
        self._on_device(lambda: self._runner.profile(num_steps, folder))

    @property
    def num_replays(self) -> int:
        """Steps so far that replayed a captured graph."""
        return self._runner.graphs.num_replays

    def _on_device(self, function: Callable[[], object]) -> None:
        if self._is_cuda:
            function()
        else:
            self._thread.call(function)

    def _run_here(self, ticket: Ticket, staged: StagedStep | None, edits: SeatEdits) -> None:
        self._run(ticket, staged, edits)
        self._finish(ticket)

    def _wait(self, ticket: Ticket, event: torch.cuda.Event) -> None:
        try:
            event.synchronize()
        except Exception as error:
            # An operation on the device failed after its launch: nothing can run there any more.
            self._end_group(error)
            ticket.error = error
        self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        ticket.next_plan_waiting = self._hooks.newest_plan_id() > ticket.plan_id
        ticket.done.set()
        self._hooks.step_done()

    def _run(self, ticket: Ticket, staged: StagedStep | None, edits: SeatEdits) -> None:
        try:
            ticket.output = self._runner.run(staged, edits)
        except Exception as error:
            self._end_group(error)
            ticket.error = error
            if is_out_of_memory(error):
                logger.warning("out of memory in plan %d: its %d rows fail", ticket.plan_id, ticket.report.seats.size)
                try:
                    self._kill_named(ticket.report, edits)
                except Exception as failure:
                    # Rows of seats that live on could write to blocks that are no longer theirs.
                    ticket.error = RuntimeError(f"the seats of plan {ticket.plan_id} could not be made dead")
                    ticket.error.__cause__ = failure

    def _end_group(self, error: Exception) -> None:
        if self._parallel.size > 1:
            # The other ranks are inside this step's collectives and would wait for ever.
            self._hooks.group_failed(error)

    def _kill_named(self, report: RowReport, edits: SeatEdits) -> None:
        """Kills every seat of a failed plan: its rows', and those whose edits may be lost, whose tables are stale."""
        appended = edits.append_targets // self.limits.blocks_per_seat
        seats = np.concatenate((report.seats[report.batch_rows], edits.registered, appended))
        self._runner.kill(seats)


def _end_event() -> torch.cuda.Event:
    # Blocking: whoever waits for the end of a step must not take a processor core meanwhile.
    event: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    return event


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a step is an allocation that failed. torch has no class of its own for it on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
