"""A kernel that a shard compiles while serving shows in /metrics, and its name in the log."""

import os

import httpx
import pytest
from harness.client import TIMEOUT_S, body, generate
from harness.launcher import ROOT, Launcher

# What Python runs first in the shard's process.
SITE = """
from penstock_server.models.integer import IntegerModel
from shard_testkit.compiling import install
install(IntegerModel)
"""


def compiled(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text.splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith("penstock_kernels_compiled_total ")]
    return float(value)


def test_a_kernel_that_the_warm_up_missed_is_counted(tmp_path, integer_folder):
    pytest.importorskip("triton")
    (tmp_path / "sitecustomize.py").write_text(SITE)
    once, folders = tmp_path / "once", (tmp_path, ROOT / "server", ROOT / "kernels")
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "COMPILE_ONCE": str(once),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    with Launcher(tmp_path, "--model-id", str(integer_folder), variables=variables) as launcher:
        url = launcher.wait_until_ready()
        generate(url, body("before", 5))
        assert compiled(url) == 0, "the warm-up compiled one, which is its job"
        once.touch()
        generate(url, body("evicted", 5))
        assert compiled(url) == 1
        launcher.wait_for_line("_silu_mul_kernel was read from the cache while serving")
        assert launcher.stop() == 0
