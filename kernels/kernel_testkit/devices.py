"""Where a test of an operation with a Triton kernel runs.

A test that takes the fixtures `device` and `dtype` runs on the CPU and, where it is marked `gpu`, on CUDA. With
TRITON_INTERPRET=1 in the environment, its CPU cases go through the Triton kernels: `test_triton_interpreter.py` runs
them so in a process of their own.
"""

import pytest
import torch

from penstock_kernels.triton_support import uses_triton

CPU = torch.device("cpu")


@pytest.fixture
def cuda() -> torch.device:
    """The GPU of a test that is marked `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn."""
    return CPU if request.param == "cpu" else request.getfixturevalue("cuda")


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """Each dtype in turn. Triton's interpreter cuts bits off where a cast to bfloat16 should round."""
    if request.param == torch.bfloat16 and device == CPU and uses_triton(torch.empty(0)):
        pytest.skip("the interpreter does not round to bfloat16")
    return request.param
