"""Runs a checkpoint on several ranks, one process each, and brings back every rank's logits.

`python -m model_testkit.ranks` is the process of one rank; its task is one JSON object on standard input.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_HANG_SECONDS = 240


@dataclass(frozen=True)
class Run:
    """A sequence and the pieces in which it is fed; what is left after them is fed token by token."""

    ids: list[int]
    pieces: list[int]


def run_ranks(checkpoint: Path, scratch: Path, size: int, runs: list[Run]) -> list[list[torch.Tensor]]:
    """[rank][run]: logits [N, V]. Raises RuntimeError with a rank's standard error when it fails."""
    scratch.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(size):
        task = {
            "checkpoint": str(checkpoint),
            "rank": rank,
            "size": size,
            "rendezvous": str(scratch / "rendezvous"),
            "out": str(scratch / f"logits-{rank}.pt"),
            "runs": [asdict(run) for run in runs],
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "model_testkit.ranks"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        process.stdin = None
        processes.append(process)
    try:
        for process in processes:
            _, errors = process.communicate(timeout=_HANG_SECONDS)
            if process.returncode:
                raise RuntimeError(errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(scratch / f"logits-{rank}.pt") for rank in range(size)]


def _main() -> None:
    from model_testkit.paged import PagedModel
    from penstock_server import models
    from penstock_server.models.source import ModelSource
    from penstock_server.parallel import TensorParallel

    task = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    device = torch.device("cpu")
    parallel = TensorParallel(task["rank"], task["size"], Path(task["rendezvous"]), device)
    model = models.load(ModelSource(Path(task["checkpoint"]), device, "float32"), parallel)
    torch.save([PagedModel(model).run(run["ids"], run["pieces"]) for run in task["runs"]], task["out"])
    parallel.close()


if __name__ == "__main__":
    _main()
