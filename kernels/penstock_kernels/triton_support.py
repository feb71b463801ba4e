"""Whether a tensor is served by Triton kernels. Imports triton only to ask one that is already there."""

import functools
import importlib.util
import sys

import torch


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is on a CUDA device and triton is installed, or triton's interpreter runs kernels on the CPU."""
    return (tensor.is_cuda and has_triton()) or is_interpreted()


def is_interpreted() -> bool:
    """Whether this process has imported triton in its interpreter mode, as the kernels' tests without a GPU do."""
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)
