"""When the parts of a step began and ended, by the clock of whatever runs them: the host or the device."""

import time
from enum import IntEnum

import torch


class Moment(IntEnum):
    """The moments of a step, in their order."""

    START = 0
    FORWARD_BEGINS = 1
    FORWARD_ENDS = 2
    END = 3


class StepClock:
    """The moments of one step. Used again for a later one, when the times of this have been read.

    On CUDA they are events between what is launched. Inside what a graph captures no event can be timed, so there the
    forward part is all of it; on the host it is the model's layers only.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds = [0.0] * len(Moment)
        self._events = [_timing_event() for _ in Moment] if device.type == "cuda" else []

    def note(self, moment: Moment, inside: bool | None = None) -> None:
        """The step has come to this moment, or will have when the stream gets here.

        `inside`: of two places of a moment, whether this is the one that a graph captures; None: there is one place.
        """
        if inside is bool(self._events):
            return
        if self._events:
            self._events[moment].record()
        else:
            self._seconds[moment] = time.perf_counter()

    def times_us(self) -> tuple[int, int]:
        """Microseconds of the whole step, and of its forward part. The step must have ended."""
        return self._between(Moment.START, Moment.END), self._between(Moment.FORWARD_BEGINS, Moment.FORWARD_ENDS)

    def gap_us(self, following: "StepClock") -> float:
        """Microseconds from this step's end to the start of the one after it. Both must have ended."""
        if self._events:
            return float(self._events[Moment.END].elapsed_time(following._events[Moment.START])) * 1000
        return (following._seconds[Moment.START] - self._seconds[Moment.END]) * 1e6

    def _between(self, begin: Moment, end: Moment) -> int:
        if self._events:
            return round(float(self._events[begin].elapsed_time(self._events[end])) * 1000)
        return round((self._seconds[end] - self._seconds[begin]) * 1e6)


def _timing_event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
