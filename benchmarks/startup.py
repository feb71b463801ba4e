"""Seconds until the bundled model answers and where they went, and clock ticks of the idle server.

Nothing else should be running.
"""

import json
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


def ready_seconds() -> tuple[float, dict[str, float]]:
    """Of several starts after one that fills the page cache: median until ready, and of each phase of the shard's."""
    seconds, phases = [], []
    for number in range(STARTS + 1):
        started = time.perf_counter()
        with servers.penstock(servers.ROOT / "server" / "penstock_server" / "demo_model", "--json-output") as port:
            if number:
                seconds.append(time.perf_counter() - started)
                phases.append(_phases(servers.log_of(port)))
    medians = {name: statistics.median(of_start[name] for of_start in phases) for name in phases[0]}
    return statistics.median(seconds), medians


def _phases(log: Path) -> dict[str, float]:
    """What the shard says of its start, in seconds."""
    [line] = [line for line in log.read_text().splitlines() if '"phase_seconds"' in line]
    phases: dict[str, float] = json.loads(line)["phase_seconds"]
    return phases


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
    seconds, phases = ready_seconds()
    record.report("startup", "demo/ready", seconds, "s", record.Peer("limit", READY_LIMIT_S))
    for name, of_phase in phases.items():
        record.report("startup", f"demo/shard/{name}", of_phase, "s", record.Peer("until ready", seconds))
    record.report("startup", "demo/idle_30s", idle_ticks(), "ticks", record.Peer("limit", IDLE_LIMIT_TICKS))


if __name__ == "__main__":
    main()
