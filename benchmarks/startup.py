"""Seconds until the bundled model answers, and clock ticks of the idle server. Nothing else should be running."""

import os
import statistics
import time
from pathlib import Path

import record
import servers

STARTS = 3
QUIET_S = 10
IDLE_S = 30
READY_LIMIT_S = 6.0
IDLE_LIMIT_TICKS = 3


def ready_seconds() -> float:
    """Median of several starts after one that fills the page cache."""
    seconds = []
    for number in range(STARTS + 1):
        started = time.perf_counter()
        with servers.penstock(servers.ROOT / "server" / "penstock_server" / "demo_model"):
            if number:
                seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def idle_ticks() -> int:
    """Clock ticks of all processes of an idle server over IDLE_S, after QUIET_S of quiet."""
    with servers.penstock(servers.ROOT / "server" / "penstock_server" / "demo_model"):
        time.sleep(QUIET_S)
        tree = _descendants(os.getpid())
        before = sum(_ticks(pid) for pid in tree)
        time.sleep(IDLE_S)
        return sum(_ticks(pid) for pid in tree) - before


def _descendants(root: int) -> list[int]:
    parents = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, frontier = [], [root]
    while frontier:
        parent = frontier.pop()
        children = [pid for pid, fields in parents.items() if fields and int(fields[1]) == parent]
        found += children
        frontier += children
    return found


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def main() -> None:
    record.report("startup", "demo/ready", ready_seconds(), "s", record.Peer("limit", READY_LIMIT_S))
    record.report("startup", "demo/idle_30s", idle_ticks(), "ticks", record.Peer("limit", IDLE_LIMIT_TICKS))


if __name__ == "__main__":
    main()
