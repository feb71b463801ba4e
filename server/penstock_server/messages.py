"""What the transport tells the engine loop, and what the loop can do with a stream. No torch, no gRPC."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StepResult:
    """`StepResult` of `proto/shard/v1/shard.proto`. Ranks other than 0 leave the columns empty."""

    plan_id: int
    plan_checksum: int
    ids_checksum: int
    rows: bytes
    token_ids: bytes
    logprobs: bytes
    top_ids: bytes
    top_logprobs: bytes
    step_us: int
    forward_us: int
    next_plan_waiting: bool
    num_kernels_compiled: int


class Stream(Protocol):
    """One open Step stream, as the engine thread sees it. Every call returns at once; after the end they do nothing."""

    def send_opened(self) -> None:
        """Tells the router that the seats are clear."""
        ...

    def send(self, result: StepResult) -> None:
        """Sends a step's answer."""
        ...

    def end(self, error: str | None) -> None:
        """Ends the stream after what was sent: with INVALID_ARGUMENT and this text, or well."""
        ...


@dataclass(frozen=True, slots=True)
class StreamOpened:
    stream: Stream


@dataclass(frozen=True, slots=True)
class PlanArrived:
    stream: Stream
    plan_id: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """The router sent something that is refused. Plans before it are carried out."""

    stream: Stream
    error: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    stream: Stream


@dataclass(frozen=True, slots=True)
class StepDone:
    """The oldest plan in flight may have ended."""


@dataclass(frozen=True, slots=True)
class ProfileSteps:
    num_steps: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Stop:
    """Carry out the plans received so far, then end the process; with `after_stream` once no Step stream is open."""

    exit_code: int
    reason: str
    after_stream: bool = False


Message = StreamOpened | PlanArrived | StreamBroken | StreamClosed | StepDone | ProfileSteps | Stop
