"""Chooses one or all threads by how busy the machine is.

Threads that share a busy core wait for each other at every operator, so with others at work one
thread is faster than two. It sets torch's thread count and nothing else.
"""

import os
import time
from pathlib import Path

import torch


class ThreadGovernor:
    """Call `adjust` now and then; each count costs one compilation when first used."""

    def __init__(self, most: int) -> None:
        self.most = most
        torch.set_num_threads(1)
        self.mark = self._read()

    def adjust(self) -> None:
        before, self.mark = self.mark, self._read()
        wall, own, idle = (now - then for now, then in zip(self.mark, before, strict=True))
        if torch.get_num_threads() == 1 and idle > 0.75 * wall:
            torch.set_num_threads(self.most)
        elif torch.get_num_threads() > 1 and own < 0.75 * self.most * wall:
            torch.set_num_threads(1)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Wall time, this process's processor time, the machine's idle time; seconds."""
        stat = Path("/proc/stat")
        idle = 0.0
        if stat.exists():
            idle = int(stat.read_text().split(maxsplit=6)[4]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), time.process_time(), idle
