"""The forward part of a step, run the same way at every padded size.

On a CPU a step is a call of its function over the preallocated buffers. On CUDA a decode size that was captured is
replayed; other steps are called, because their launches hide behind their work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import penstock_kernels
from penstock_server.batch import StagedStep
from penstock_server.staging import StepShape

# Each captured size keeps logits of its own; larger steps hide their launches.
MAX_CAPTURED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the forward part leaves. After a replay these are the graph's own tensors: used before the next step."""

    row_seats: torch.Tensor  # int64 [R], the pad seat in dead and padded rows
    logits: torch.Tensor | None  # float32 [S, V]; None when no row samples


def can_capture(device: torch.device) -> bool:
    """Whether a replay repeats a step: not while an operation reads lengths on the host, as the `cpu` ones do."""
    return device.type == "cuda" and bool(getattr(penstock_kernels, "GRAPH_SAFE", False))


class Graphs:
    """Runs steps; keeps the captured ones by their size."""

    def __init__(self, function: Callable[[StagedStep], Forwarded], device: torch.device) -> None:
        self._function = function
        self._can_capture = can_capture(device)
        self._device = device
        self._captured: dict[StepShape, tuple[torch.cuda.CUDAGraph, Forwarded]] = {}
        self._pool: Any = None
        self.num_replays = 0

    def run(self, staged: StagedStep) -> Forwarded:
        """Runs one step whose columns are on the device."""
        if captured := self._captured.get(staged.shape):
            graph, result = captured
            graph.replay()
            self.num_replays += 1
            return result
        return self._function(staged)

    def warm_up(self, staged: StagedStep) -> None:
        """Makes later runs of this size fast: by a call, and by a capture where it can be. The largest size first."""
        self._function(staged)
        shape = staged.shape
        worth_it = shape.decode and shape.num_rows <= MAX_CAPTURED_ROWS
        if self._can_capture and worth_it and shape not in self._captured:
            self._capture(staged)
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # the caller builds the next size in the same host buffer

    def _capture(self, staged: StagedStep) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: other threads may use CUDA meanwhile, as the watchdog of NCCL does.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self._function(staged)
        self._pool = self._pool or graph.pool()
        self._captured[staged.shape] = (graph, result)
