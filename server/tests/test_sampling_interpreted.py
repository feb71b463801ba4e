"""The sampler's own tests through the fused Triton kernels, by the interpreter, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Those that look at operations of torch are about the other form; the longest ones would take minutes.
TESTS = (
    "greedy_equals or same_tokens_alone_and_in_any_batch[rows-10] or seed_fork or penalties_follow or lane_given or "
    "released_seat or frequency_and or bad_row_counts or bias_bans or logprobs_raw or single_nan or everything_banned"
)
# A hang guard, several times what they take on two busy cores.
LIMIT_S = 900
# Small chunks of the vocabulary, so that a row has several.
PLUGIN = """
import triton
from penstock_kernels import sample_step
sample_step.CHUNK = 64
"""


def test_the_samplers_tests_pass_through_its_kernels(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "interpreted.py").write_text(PLUGIN)
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "interpreted", "-m", "not gpu"]
    command += ["-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning", "-k", f"({TESTS}) and not all"]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(
        [*command, str(folder / "test_sampling.py")],
        capture_output=True, text=True, env=environment, cwd=folder.parents[1], timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) >= 20
