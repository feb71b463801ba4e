"""Whether an operation runs as a Triton kernel: on CUDA tensors where triton is installed, and on CPU tensors where its
interpreter is on, as it is in tests. Triton is imported with the first kernel that runs: a server on a CPU never does.
"""

import functools
import importlib.util
import sys

import torch


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed; torch for a CPU comes without it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether this process has imported triton with its interpreter on."""
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` launches its Triton kernel."""
    return is_interpreted() or (tensor.is_cuda and has_triton())


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()
