"""Whether an operation runs as a Triton kernel: on CUDA tensors where triton is installed, and on CPU tensors where its
interpreter is on, as it is in tests. An operation imports its kernel only then: the package works without triton."""

import torch

try:
    import triton
except ImportError:  # torch for a CPU comes without it
    triton = None

HAS_TRITON = triton is not None
# Read once: triton decides it when a kernel is defined.
_INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` launches its Triton kernel."""
    return _INTERPRETED or (HAS_TRITON and tensor.is_cuda)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()
