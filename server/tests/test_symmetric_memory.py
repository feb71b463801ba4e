"""Sums over memory that all ranks share: by the interpreter in processes of their own over a mapped file, as well as on
GPUs where there are several."""

import json
import os
import subprocess
import sys

import pytest
import torch

from penstock_server.parallel import TensorParallel

# Each call's tensors are a function of rank and call, so that every process can say what the sum has to be. Prints
# for each call whether it went over the shared memory, and whether the sum was right.
_RANK = """
import json, sys, torch
from pathlib import Path
from penstock_kernels.all_reduce import all_reduce_ref
from penstock_server import parallel, symmetric_memory
from penstock_server.parallel import TensorParallel

rank, size, folder, kind = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")

def mapped(rank, size, store, device):
    # Room for the flags of 8 ranks behind the halves; a new file is all zeros.
    num_bytes = 2 * symmetric_memory.HALF_BYTES + 4096
    files = [torch.from_file(str(folder / f"memory-{r}"), True, num_bytes, dtype=torch.uint8) for r in range(size)]
    return symmetric_memory.peer_buffers(rank, [file.data_ptr() for file in files], device), files

if kind == "cpu":
    symmetric_memory.connect = mapped
else:
    torch.cuda.set_device(device)
group = TensorParallel(rank, size, folder / "rendezvous", device, symmetric=True)
shared, all_reduce = [], parallel.all_reduce
parallel.all_reduce = lambda x, peers: shared.append(True) or all_reduce(x, peers)

def part(rank, shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(8 * len(lines) + rank))
    return (x * 100).to(dtype)

lines = []
cases = [((2, 64), torch.float32), ((3,), torch.float32), ((1 << 18, 4), torch.float16), ((8,), torch.int64)]
for shape, dtype in [*cases, ((65, 8), torch.float16), ((2, 64), torch.float32), ((2, 64), torch.float32)]:
    shared.clear()
    total = group.all_reduce(part(rank, shape, dtype).to(device))
    expected = all_reduce_ref([part(r, shape, dtype) for r in range(size)])
    lines.append((bool(shared), torch.equal(total.cpu(), expected)))
print(json.dumps(lines))
"""


def run_ranks(size, folder, kind):
    """What every rank printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    if kind == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-W", "ignore", "-c", _RANK]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), kind],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output) for output, _ in outputs]


# A tensor goes over the shared memory unless it is too large, no multiple of a group, or not of floats.
EXPECTED = [[goes, True] for goes in (True, False, False, False, True, True, True)]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_in_processes_of_their_own_wait_for_each_other(size, tmp_path):
    pytest.importorskip("triton")
    assert run_ranks(size, tmp_path, "cpu") == [EXPECTED] * size


@pytest.mark.gpu
def test_gpus_add_in_rank_order(tmp_path):
    size = torch.cuda.device_count()
    if size < 2:
        pytest.skip("one GPU has nobody to add up with")
    assert run_ranks(size, tmp_path, "cuda") == [EXPECTED] * size


def test_one_rank_shares_no_memory():
    parallel = TensorParallel(0, 1, None, torch.device("cpu"), symmetric=True)
    x = torch.ones(8)
    assert parallel.all_reduce(x) is x
