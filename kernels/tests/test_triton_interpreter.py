"""Triton kernels on a machine without a GPU, by Triton's interpreter. It changes how kernels are defined, so it needs a
process of its own: there the CPU cases of the operations' tests go through their kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPERATIONS = ("embedding", "rms_norm", "rotary_kv_store", "silu_mul")


def test_operations_equal_their_references_in_the_interpreter():
    pytest.importorskip("triton")
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    # numpy, in which the interpreter calculates, warns where a GPU silently gives infinity.
    command += ["-W", "ignore::RuntimeWarning", "-k", "not same_bits"]
    command += [str(tests / f"test_{operation}.py") for operation in OPERATIONS]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tests.parents[1])
    assert finished.returncode == 0, finished.stdout + finished.stderr


def run_python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


@pytest.mark.parametrize(("flag", "expected"), [("1", "True"), ("0", "False")])
def test_the_interpreter_runs_the_kernels(flag, expected):
    """What the test above relies on."""
    pytest.importorskip("triton")
    code = "import torch; from penstock_kernels.triton_support import uses_triton; print(uses_triton(torch.ones(1)))"
    assert run_python(code, TRITON_INTERPRET=flag) == expected


def test_operations_work_without_triton():
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, penstock_kernels
from penstock_kernels.rms_norm import rms_norm
print(penstock_kernels.GRAPH_SAFE, rms_norm(torch.ones(1, 1), torch.ones(1), 0.0).item())
"""
    assert run_python(code) == "False 1.0"
