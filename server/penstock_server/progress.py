"""How far the engine is, for health and warm-up: numbers that one thread writes and another reads without a lock."""

import os
import time
from pathlib import Path

# A step in flight this long without any step ending means that the device hangs.
STALL_SECONDS = 30.0


class StartPhases:
    """Seconds of each phase of a start, one after another without gaps."""

    def __init__(self, started_at: float) -> None:
        """`started_at`: by the monotonic clock."""
        self.seconds: dict[str, float] = {}
        self._since = started_at

    def end(self, name: str) -> None:
        """What happened since the phase before ended was this one; a phase may come in several parts."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """Seconds from the start to the end of the last phase."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())


class Progress:
    """Counts plans. Health is answered from here, without the device."""

    def __init__(self) -> None:
        self.started_at = time.monotonic() - process_age_seconds()
        self.ready = False
        self._launched = 0
        self._collected = 0
        self._changed_at = time.monotonic()

    def plan_launched(self) -> None:
        if self._launched == self._collected:
            self._changed_at = time.monotonic()
        self._launched += 1

    def plan_collected(self) -> None:
        self._collected += 1
        self._changed_at = time.monotonic()

    def healthy(self) -> bool:
        """Ready, and either idle or moving."""
        idle = self._launched == self._collected
        return self.ready and (idle or time.monotonic() - self._changed_at < STALL_SECONDS)

    def elapsed_ms(self) -> int:
        """Milliseconds since the process started."""
        return int((time.monotonic() - self.started_at) * 1000)


def process_age_seconds() -> float:
    """How long ago the kernel started this process."""
    # Field 22 of /proc/self/stat, in clock ticks since boot; the name in field 2 may hold spaces and parentheses.
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
