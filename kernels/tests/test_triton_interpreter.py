"""Triton kernels on a machine without a GPU, by Triton's interpreter. It changes how kernels are defined, so it needs a
process of its own: there the CPU cases of the operations' tests go through their kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import penstock_kernels

TESTS = (
    "test_embedding.py",
    "test_prepare_step.py",
    "test_rms_norm.py",
    "test_rotary_kv_store.py",
    "test_silu_mul.py",
    "triton",
)
# A hang guard, several times what they take on two busy cores.
LIMIT_S = 1200


def launched_kernels():
    """Names of all kernels that the package launches."""
    sources = Path(penstock_kernels.__file__).parent.glob("*.py")
    return {name for source in sources for name in re.findall(r"(\w*kernel)\[", source.read_text())}


def test_kernels_equal_their_references_in_the_interpreter(tmp_path):
    """Each of them, in float32 and in float16."""
    pytest.importorskip("triton")
    ran = tmp_path / "ran"
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    # numpy, in which the interpreter calculates, warns where a GPU gives infinity, and of what Triton 3.6 does.
    command += ["-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning"]
    command += [str(folder / test) for test in TESTS]
    # One thread: the matrices are small, and threads that wait for work take it from the test beside this one.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PENSTOCK_KERNELS_RAN"] = str(ran)
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder.parents[1], timeout=LIMIT_S, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout), run.stdout
    seen = set(ran.read_text().split())
    kernels = launched_kernels()
    assert len(kernels) >= 8
    missing = {f"{kernel}:{dtype}" for kernel in kernels for dtype in ("float32", "float16")} - seen
    whole_numbers = {"plan_kernel", "_prepare_step_kernel"}
    of_logits = {"edit_kernel", "cut_kernel", "weigh_kernel", "choose_kernel"}  # which are float32 on every device
    expected = {f"{kernel}:{dtype}" for kernel in whole_numbers for dtype in ("float32", "float16")}
    assert missing == expected | {f"{kernel}:float16" for kernel in of_logits}
    assert {f"{kernel}:integers" for kernel in whole_numbers} <= seen


def test_the_interpreter_runs_the_kernels():
    """What the test above relies on."""
    pytest.importorskip("triton")
    lines = (
        "import torch, triton",
        "from penstock_kernels.triton_support import uses_triton",
        "print(uses_triton(torch.ones(1)))",
    )
    for flag, expected in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "TRITON_INTERPRET": flag, "PYTHONPATH": os.pathsep.join(sys.path)}
        finished = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment
        )
        assert finished.stdout.strip() == expected, finished.stderr
