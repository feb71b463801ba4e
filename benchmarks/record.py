"""One JSON line per figure, with the machine's description beside it. Knows nothing of what is measured."""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@cache
def machine() -> dict[str, object]:
    """Processor, cores, GPUs, versions and commit, as they stand in every line."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "transformers")},
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain", "--untracked-files=no")),
    }


@dataclass(frozen=True, slots=True)
class Peer:
    """What a figure is compared with, measured in the same run: another program or a physical limit."""

    name: str
    value: float


def report(
    bench: str, case: str, value: float, unit: str, peer: Peer | None = None, target: float | None = None
) -> None:
    """Prints one figure and appends it to results/<bench>-<date>.jsonl. `ratio` is value / peer value, `target` the
    ratio that is wanted at least.
    """
    line: dict[str, object] = {
        "bench": bench,
        "case": case,
        "value": _rounded(value),
        "unit": unit,
        "peer": peer.name if peer else None,
        "peer_value": _rounded(peer.value) if peer else None,
        "ratio": _rounded(value / peer.value) if peer and peer.value else None,
    }
    if target is not None:
        line["target"] = target
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    keep(line, bench)


def keep(line: dict[str, object], name: str) -> None:
    """Appends a figure to results/<name>-<date>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.date.today().isoformat()}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line | {"machine": machine()}) + "\n")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _processor() -> str:
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return row.split(":", 1)[1].strip()
    return platform.machine()


def _gpus() -> list[str]:
    """Names, as the driver's own tool gives them; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def _version(package: str) -> str | None:
    """Of this environment; the peer's is installed under the same constraints."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
