"""Where a process runs Triton kernels: on a CUDA device, or on the CPU in a process that was started with the
interpreter. A test of kernels runs the same cases in both; `GPU_TESTS` marks it `gpu` where it needs the former.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
GPU_TESTS = [] if INTERPRETED else [pytest.mark.gpu]
# The interpreter multiplies the bit patterns of two bfloat16 matrices.
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
