"""Runs the tests of the Triton kernels in the interpreter: a process decides once how it compiles."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_triton_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    folder = Path(__file__).parent / "triton"
    # Triton 3.6's interpreter turns arrays of one element into the bounds of a range.
    numpy_warning = "ignore:Conversion of an array with ndim:DeprecationWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-W", numpy_warning, str(folder)]
    # One thread: the matrices are small, and threads that wait for work take it from the test beside this one.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout), run.stdout
