"""Collectives between processes: sums in rank order, joins in rank order, and a rank that dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock_server.parallel import TensorParallel

CPU = torch.device("cpu")

# Every rank prints what it got; the test compares the lines.
_RANK = """
import sys, torch
from pathlib import Path
from penstock_server.parallel import TensorParallel
rank, size = int(sys.argv[1]), int(sys.argv[2])
parallel = TensorParallel(rank, size, Path(sys.argv[3]), torch.device("cpu"))
{body}
parallel.close()
"""


def run_ranks(size, rendezvous, body):
    """Standard output of every rank."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "no-such-interface"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK.format(body=body), str(rank), str(size), str(rendezvous)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=120)
            outputs.append((process.returncode, output, errors))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return outputs


def succeed(size, rendezvous, body):
    outputs = run_ranks(size, rendezvous, body)
    for code, _, errors in outputs:
        assert code == 0, errors
    return [output for _, output, _ in outputs]


@pytest.mark.parametrize("size", [2, 3])
def test_sums_in_rank_order(size, tmp_path):
    # 2^24 + 1 - 2^24 is 0 or 1 in float32, by the order of the sum.
    body = "print(parallel.all_reduce(torch.tensor([[1.0, 2.0**24, -(2.0**24)][rank]])).tolist())"
    expected = 0.0
    for rank in range(size):
        expected = float(torch.tensor([expected]) + torch.tensor([[1.0, 2.0**24, -(2.0**24)][rank]]))
    assert succeed(size, tmp_path / "rendezvous", body) == [f"[{expected}]\n"] * size


def test_all_reduce_leaves_its_input(tmp_path):
    body = "x = torch.full((2, 3), rank + 1.0); y = parallel.all_reduce(x); print(x[0, 0].item(), y.tolist())"
    outputs = succeed(2, tmp_path / "rendezvous", body)
    assert outputs == [f"{rank + 1.0} {[[3.0] * 3] * 2}\n" for rank in range(2)]


def test_gathers_along_the_last_dimension(tmp_path):
    body = "print(parallel.all_gather(torch.tensor([[rank], [10 + rank]])).tolist())"
    assert succeed(3, tmp_path / "rendezvous", body) == ["[[0, 1, 2], [10, 11, 12]]\n"] * 3


def test_broadcasts_in_place(tmp_path):
    body = "x = torch.tensor([rank + 5]); parallel.broadcast(x); y = torch.tensor([rank]); "
    body += "parallel.broadcast(y, root=1); print(x.item(), y.item())"
    assert succeed(2, tmp_path / "rendezvous", body) == ["5 1\n"] * 2


def test_listens_on_loopback_only(tmp_path):
    body = """
own = set()
import os
for fd in os.listdir("/proc/self/fd"):
    try: own.add(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError: pass
for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
    for line in open(table).readlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in own:
            print(fields[1].split(":")[0])
"""
    for output in succeed(2, tmp_path / "rendezvous", body):
        addresses = set(output.split())
        assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
        assert addresses


def test_a_rank_that_dies_ends_the_others(tmp_path):
    body = "import os\nif rank == 1: os._exit(7)\nparallel.all_reduce(torch.ones(3))"
    (first, _, errors), (second, _, _) = run_ranks(2, tmp_path / "rendezvous", body)
    assert second == 7
    assert first != 0
    assert "RuntimeError" in errors or "DistBackendError" in errors


def test_one_rank_needs_no_group():
    parallel = TensorParallel(0, 1, None, CPU)
    x = torch.ones(2)
    assert parallel.all_reduce(x) is x
    assert parallel.all_gather(x) is x
    assert parallel.broadcast(x) is x
    parallel.close()


def test_several_ranks_need_a_rendezvous():
    with pytest.raises(ValueError, match="2 ranks need a rendezvous file"):
        TensorParallel(0, 2, None, CPU)
    with pytest.raises(ValueError, match="rank 3 is not below"):
        TensorParallel(3, 2, Path("x"), CPU)
