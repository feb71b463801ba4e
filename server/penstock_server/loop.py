"""The engine thread's loop: plans in, results out, at most `depth` plans in flight.

It waits in one place, for the next message: a plan, the end of a step, a stream's end. So with room for a plan it never
waits past the completion of the oldest one. Knows nothing of tensors or gRPC.
"""

import gc
import logging
import queue
from collections import deque

from penstock_server.engine import Engine, Ticket
from penstock_server.messages import (
    Message,
    PlanArrived,
    ProfileSteps,
    StepDone,
    Stop,
    Stream,
    StreamBroken,
    StreamClosed,
    StreamOpened,
)
from penstock_server.plan import Plan, RowSet, decode_plan
from penstock_server.plan_checks import PlanError
from penstock_server.progress import Progress

logger = logging.getLogger(__name__)

# What can wait is done when the loop has been idle this long; garbage is also collected when so much has piled up.
IDLE_SECONDS = 1.0
OBJECTS_BEFORE_GC = 200_000


class EngineLoop:
    """Carries out one Step stream at a time, in the order of the messages."""

    def __init__(self, engine: Engine, inbox: "queue.SimpleQueue[Message]", depth: int, progress: Progress) -> None:
        self._engine = engine
        self._inbox = inbox
        self._depth = depth
        self._progress = progress
        self._stream: Stream | None = None
        self._stop: Stop | None = None
        self._received: deque[PlanArrived] = deque()
        self._in_flight: deque[Ticket] = deque()
        self._previous_rows: RowSet | None = None
        self._next_plan_id = 1
        self._garbage = False

    def run(self) -> int:
        """Until a `Stop`, whose exit code it returns. Raises what a step raised."""
        while True:
            if self._received and len(self._in_flight) < self._depth:
                self._launch(self._received.popleft())
            elif self._in_flight and self._in_flight[0].done.is_set():
                self._collect_oldest()
            elif self._stop is not None and self._stream is None:
                logger.info("stopping: %s", self._stop.reason)
                return self._stop.exit_code
            else:
                self._handle(self._next_message())

    def _next_message(self) -> Message:
        """Waits. Uses an idle time, never while plans are in flight: to collect garbage once, then for the engine."""
        while not self._in_flight and (self._garbage or self._engine.has_idle_work):
            try:
                return self._inbox.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._garbage:
                    gc.collect()
                    self._garbage = False
                else:
                    self._engine.use_idle_time(is_awaited=lambda: not self._inbox.empty())
        return self._inbox.get()

    def _handle(self, message: Message) -> None:
        match message:
            case PlanArrived(stream=stream):
                if stream is self._stream:
                    self._received.append(message)
            case StepDone():
                pass
            case StreamOpened(stream=stream):
                self._stream = stream
                self._previous_rows, self._next_plan_id = None, 1
                stream.send_opened()
            case StreamBroken(stream=stream, error=error):
                if stream is self._stream:
                    self._finish_received()
                    self._leave(error)
            case StreamClosed(stream=stream):
                if stream is self._stream:
                    self._finish_received()
                    self._leave(None)
            case Stop(reason=reason, after_stream=after_stream):
                self._stop = message
                if self._stream is not None and after_stream:
                    logger.info("%s: stopping when the router closes its stream", reason)
                else:
                    self._finish_received()
                    self._leave(None)
            case ProfileSteps(num_steps=num_steps, folder=folder):
                self._engine.profile(num_steps, folder)
            case _:
                raise AssertionError(f"no rule for {message}")

    def _launch(self, message: PlanArrived) -> None:
        """Starts one plan; a plan that is refused ends the stream after the answers of those before it."""
        try:
            plan = self._decode(message)
            ticket = self._engine.launch(plan)
        except PlanError as error:
            logger.warning("plan %d refused: %s", message.plan_id, error)
            self._received.clear()
            self._leave(f"plan {message.plan_id}: {error}")
            return
        self._next_plan_id += 1
        self._previous_rows = plan.rows
        self._in_flight.append(ticket)
        self._progress.plan_launched()

    def _decode(self, message: PlanArrived) -> Plan:
        if message.plan_id != self._next_plan_id:
            raise PlanError(f"plan id {message.plan_id}, expected {self._next_plan_id}")
        return decode_plan(message.plan_id, message.blob, self._previous_rows, self._engine.limits)

    def _collect_oldest(self) -> None:
        result = self._engine.collect(self._in_flight.popleft())
        self._progress.plan_collected()
        if self._stream is not None:
            self._stream.send(result)
        self._garbage = True
        if gc.get_count()[0] > OBJECTS_BEFORE_GC:
            gc.collect(1)

    def _finish_received(self) -> None:
        """Carries out all plans received so far."""
        while self._received:
            while len(self._in_flight) >= self._depth:
                self._collect_oldest()
            self._launch(self._received.popleft())

    def _leave(self, error: str | None) -> None:
        """Drains, ends the stream and clears all seats."""
        while self._in_flight:
            self._collect_oldest()
        if self._stream is not None:
            self._stream.end(error)
            self._stream = None
            self._engine.clear()
