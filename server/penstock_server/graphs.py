"""The forward part of a step, run the same way at every padded size.

On a CPU a step is a call of its function over the preallocated buffers. On CUDA decode sizes and small mixed ones are
captured and replayed; other steps are called, because their launches hide behind their work.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import penstock_kernels
from penstock_server.batch import StagedStep
from penstock_server.staging import StepShape

# Each captured size keeps logits of its own; larger steps hide their launches.
MAX_CAPTURED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the forward part leaves. After a replay these are the graph's own tensors: used before the next step."""

    row_seats: torch.Tensor  # int64 [R], the pad seat in dead and padded rows
    hidden: torch.Tensor  # [T, C]
    logits: torch.Tensor | None  # float32 [S, V], in decode steps that sample; in others they are not of this part


ForwardPart = Callable[[StagedStep], Forwarded]
# Of a call, how to replay it, and what it leaves.
Capture = Callable[[ForwardPart, StagedStep], tuple[Callable[[], None], Forwarded]]


class GaveWay(Exception):
    """A capture was abandoned, because there is work."""


def can_capture(device: torch.device) -> bool:
    """Whether a replay repeats a step: not while an operation reads lengths on the host, as the `cpu` ones do."""
    return device.type == "cuda" and bool(getattr(penstock_kernels, "GRAPH_SAFE", False))


def is_captured(shape: StepShape) -> bool:
    """Whether steps of this shape are worth a graph, where there are graphs."""
    return shape.any_mix or (shape.decode and shape.num_rows <= MAX_CAPTURED_ROWS)


class CudaCapture:
    """Captures calls of the forward part. Graphs share one pool of memory: never do two run at once."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: ForwardPart, staged: StagedStep) -> tuple[Callable[[], None], Forwarded]:
        """As `Capture`."""
        try:
            return self._capture(function, staged)
        except torch.OutOfMemoryError:
            # Within a capture torch gives back nothing of what it holds for other steps.
            torch.cuda.empty_cache()
            return self._capture(function, staged)

    def _capture(self, function: ForwardPart, staged: StagedStep) -> tuple[Callable[[], None], Forwarded]:
        # Not `torch.cuda.graph`: it would first give the driver all memory that is free now, and the next step that is
        # called would have to ask for it again.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Thread-local: other threads may use CUDA meanwhile, as the watchdog of NCCL does.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = function(staged)
            except BaseException:
                # What went wrong is what is told, not that a capture cannot end after it.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        self._pool = self._pool or graph.pool()
        return graph.replay, result


class Graphs:
    """Runs steps; keeps the captured ones by their shape."""

    def __init__(self, function: ForwardPart, capture: Capture | None) -> None:
        """`capture`: None where nothing can be captured."""
        self._function = function
        self._capture = capture
        self._captured: dict[StepShape, tuple[Callable[[], None], Forwarded]] = {}
        self.num_replays = 0

    @property
    def can_capture(self) -> bool:
        """Whether `capture` does anything."""
        return self._capture is not None

    @property
    def num_captured(self) -> int:
        """Shapes so far."""
        return len(self._captured)

    def run(self, staged: StagedStep) -> Forwarded:
        """Runs one step whose columns are on the device."""
        if captured := self._captured.get(staged.shape.forward):
            replay, result = captured
            replay()
            self.num_replays += 1
            return result
        return self._function(staged)

    def capture(self, staged: StagedStep, is_awaited: Callable[[], bool] = lambda: False) -> None:
        """Captures a shape that has been run before, where that can be and is worth it. The largest size first: its
        memory serves the others too. Raises GaveWay as soon as `is_awaited()`.
        """
        shape = staged.shape.forward
        if self._capture is None or not is_captured(shape) or shape in self._captured:
            return
        with _GiveWay(is_awaited):
            self._captured[shape] = self._capture(self._function, staged)


class _GiveWay(TorchFunctionMode):
    """Looks up before every operation. (A mode of dispatch would import torch's compiler, which takes seconds.)"""

    def __init__(self, is_awaited: Callable[[], bool]) -> None:
        self._is_awaited = is_awaited

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._is_awaited():
            raise GaveWay
        return func(*args, **(kwargs or {}))
