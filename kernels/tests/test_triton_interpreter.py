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


def test_the_interpreter_runs_the_kernels():
    """What the test above relies on."""
    pytest.importorskip("triton")
    code = "import torch; from penstock_kernels.triton_support import uses_triton; print(uses_triton(torch.ones(1)))"
    for flag, expected in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "TRITON_INTERPRET": flag, "PYTHONPATH": os.pathsep.join(sys.path)}
        finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert finished.stdout.strip() == expected, finished.stderr
