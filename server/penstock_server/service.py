"""The shard's gRPC face: protobuf <-> messages of the engine loop. Runs on the transport thread; no tensors, no torch.

The loop that serves it is uvloop's, in a thread of its own, asleep between messages. A plan goes to the engine thread
through a plain queue, a result comes back with one thread-safe call.
"""

import asyncio
import logging
import os
import queue
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from penstock_server import exit_codes
from penstock_server.logs import LEVELS, set_level
from penstock_server.messages import (
    Message,
    PlanArrived,
    ProfileSteps,
    StepResult,
    Stop,
    StreamBroken,
    StreamClosed,
    StreamOpened,
)
from penstock_server.pb.shard.v1 import shard_pb2, shard_pb2_grpc
from penstock_server.plan_checks import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

SECONDS_WITHOUT_ROUTER = 30.0
SECONDS_TO_STOP = 10.0
# A router sends at most `depth` plans ahead; beyond this the shard stops reading, so a client cannot fill its memory.
MAX_UNANSWERED_PLANS = 16


class StepStream:
    """`messages.Stream` over one gRPC call."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.outbox: asyncio.Queue[shard_pb2.StepResponse | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(MAX_UNANSWERED_PLANS)
        self.error: str | None = None
        self.closed = False
        self._loop = asyncio.get_running_loop()

    def send_opened(self) -> None:
        opened = shard_pb2.StepResponse(opened=shard_pb2.Opened(epoch=self.epoch))
        self._loop.call_soon_threadsafe(self.outbox.put_nowait, opened)

    def send(self, result: StepResult) -> None:
        self._loop.call_soon_threadsafe(self.outbox.put_nowait, _to_response(result))

    def end(self, error: str | None) -> None:
        self.error = error
        self._loop.call_soon_threadsafe(self.outbox.put_nowait, None)


class ShardService(shard_pb2_grpc.ShardServicer):  # type: ignore[misc]
    """One per process. All methods run on the transport thread; `publish` may be called from any."""

    def __init__(self, info: shard_pb2.InfoResponse, inbox: "queue.SimpleQueue[Message]") -> None:
        self.newest_plan_id = 0  # read by the engine: has the next plan arrived?
        self._info = info
        self._inbox = inbox
        self._warmup = shard_pb2.WarmupProgress(phase="load")
        self._warmup_changed = asyncio.Event()
        self._stream: StepStream | None = None
        self._last_epoch = 0
        self._abandoned: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def publish(self, warmup: shard_pb2.WarmupProgress, info: shard_pb2.InfoResponse) -> None:
        """Tells everybody how far warm-up is. Thread-safe."""

        def change() -> None:
            self._warmup, self._info = warmup, info
            self._warmup_changed.set()
            self._warmup_changed = asyncio.Event()

        self._loop.call_soon_threadsafe(change)

    async def Info(self, request: shard_pb2.InfoRequest, context: grpc.aio.ServicerContext) -> shard_pb2.InfoResponse:
        return self._info

    async def Warmup(
        self, request: shard_pb2.WarmupRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.WarmupProgress]:
        while True:
            changed, warmup = self._warmup_changed, self._warmup
            yield warmup
            if warmup.phase == "ready":
                return
            await changed.wait()

    async def Control(
        self, request: shard_pb2.ControlRequest, context: grpc.aio.ServicerContext
    ) -> shard_pb2.ControlResponse:
        match request.WhichOneof("action"):
            case "shutdown":
                self._inbox.put(Stop(exit_codes.OK, "asked to by Control"))
            case "log_level":
                if request.log_level.level not in LEVELS:
                    await _refuse(context, f"log level {request.log_level.level!r} is not one of {', '.join(LEVELS)}")
                set_level(request.log_level.level)
            case "profile":
                folder = Path(request.profile.folder)
                if not folder.is_dir() or not request.profile.num_steps:
                    await _refuse(context, f"profile needs num_steps >= 1 and an existing folder, not {folder}")
                self._inbox.put(ProfileSteps(request.profile.num_steps, folder))
            case _:
                await _refuse(context, "Control without an action")
        return shard_pb2.ControlResponse()

    async def Step(self, requests: AsyncIterator[shard_pb2.StepRequest], context: grpc.aio.ServicerContext) -> None:
        # The router waits for the headers before it sends a plan.
        await context.send_initial_metadata(())
        stream = await self._open(context)
        if stream is None:
            return
        reader = asyncio.create_task(self._read(stream, context))
        try:
            while (response := await stream.outbox.get()) is not None:
                await context.write(response)
                if response.WhichOneof("body") == "result":
                    stream.room.release()
            if stream.error is not None:
                await _refuse(context, stream.error)
        finally:
            reader.cancel()
            self._stream = None
            self._close(stream)
            self._abandoned = self._loop.call_later(SECONDS_WITHOUT_ROUTER, self._abandon)

    async def _open(self, context: grpc.aio.ServicerContext) -> StepStream | None:
        """Reads `Open`. None when the client left without a word."""
        request = await context.read()
        if request is grpc.aio.EOF:
            return None
        if request.WhichOneof("body") != "open":
            await _refuse(context, "the first message of a Step stream must be Open")
        epoch, protocol = request.open.epoch, request.open.protocol
        if protocol != PROTOCOL_VERSION:
            text = f"the router speaks protocol {protocol}, this shard {PROTOCOL_VERSION}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        if self._stream is not None:
            text = f"a Step stream of epoch {self._stream.epoch} is open; there is one at a time"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        if epoch <= self._last_epoch:
            text = f"epoch {epoch} is not above the last one, {self._last_epoch}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        if self._abandoned is not None:
            self._abandoned.cancel()
        self._last_epoch = epoch
        self.newest_plan_id = 0
        self._stream = StepStream(epoch)
        self._inbox.put(StreamOpened(self._stream))
        return self._stream

    async def _read(self, stream: StepStream, context: grpc.aio.ServicerContext) -> None:
        """Hands plans to the engine until the router has no more, or sends what is refused."""
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                if refused := _refusal(request):
                    self._inbox.put(StreamBroken(stream, refused))
                    return
                self.newest_plan_id = request.plan.plan_id
                await stream.room.acquire()
                self._inbox.put(PlanArrived(stream, request.plan.plan_id, request.plan.blob))
        except Exception as error:
            # Bytes that are no StepRequest, or a call that is over, which its handler sees too.
            logger.debug("reading the Step stream ended: %s", error)
            self._inbox.put(StreamBroken(stream, f"a message of the Step stream could not be read: {error}"))
            return
        self._close(stream)

    def _close(self, stream: StepStream) -> None:
        """Tells the engine, once, that the router sends no more."""
        if not stream.closed:
            stream.closed = True
            self._inbox.put(StreamClosed(stream))

    def _abandon(self) -> None:
        # The engine may hang in a collective whose other ranks are gone.
        self._loop.call_later(SECONDS_TO_STOP, os._exit, exit_codes.ABANDONED)
        self._inbox.put(Stop(exit_codes.ABANDONED, f"no router for {SECONDS_WITHOUT_ROUTER:.0f} s"))


async def _refuse(context: grpc.aio.ServicerContext, text: str) -> None:
    """Ends the call; does not return."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


def _refusal(request: shard_pb2.StepRequest) -> str | None:
    """Why a message of a Step stream is refused, if it is."""
    match request.WhichOneof("body"):
        case "plan" if request.plan.adapter_loads:
            return "adapter loads are refused: this shard has no FEATURE_ADAPTERS"
        case "plan" if request.plan.encoder_inputs:
            return "encoder inputs are refused: this shard has no FEATURE_ENCODER_INPUTS"
        case "plan":
            return None
        case "mask":
            return "grammar masks are refused: this shard has no FEATURE_GRAMMAR_MASKS"
        case "open":
            return "Open in the middle of a Step stream"
        case _:
            return "a StepRequest without a body"


def _to_response(result: StepResult) -> shard_pb2.StepResponse:
    return shard_pb2.StepResponse(
        result=shard_pb2.StepResult(
            plan_id=result.plan_id,
            plan_checksum=result.plan_checksum,
            ids_checksum=result.ids_checksum,
            rows=result.rows,
            token_ids=result.token_ids,
            logprobs=result.logprobs,
            top_ids=result.top_ids,
            top_logprobs=result.top_logprobs,
            step_us=result.step_us,
            forward_us=result.forward_us,
            next_plan_waiting=result.next_plan_waiting,
            num_kernels_compiled=result.num_kernels_compiled,
        )
    )
