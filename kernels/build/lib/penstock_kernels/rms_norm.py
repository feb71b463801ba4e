"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), alone and after adding to the residual.

    y = x / sqrt(mean(x^2) + epsilon) * weight

Shapes: T tokens, C channels. Statistics are float32 whatever the dtype of x.
"""

import functools

import torch

from penstock_kernels.triton_support import uses_triton


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """[T, C]: `x` [T, C] normalised and scaled by `weight` [C], both of one dtype."""
    if uses_triton(x):
        from penstock_kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, epsilon)
    return rms_norm_cpu(x, weight, epsilon)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """[T, C]: adds `x` to `residual` (both [T, C]) in place, and returns the sum normalised."""
    if uses_triton(x):
        from penstock_kernels.rms_norm_triton import add_rms_norm_triton

        return add_rms_norm_triton(x, residual, weight, epsilon)
    return add_rms_norm_cpu(x, residual, weight, epsilon)


def rms_norm_cpu(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Plain torch, on any device: five operations in float32."""
    wide = x if x.dtype == torch.float32 else x.float()
    norm = torch.linalg.vector_norm(wide, 2, -1, keepdim=True)
    scale = torch.addcmul(_constant(epsilon, x.device), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
    out = torch.mul(wide, scale)
    return (out if x.dtype == torch.float32 else out.to(x.dtype)).mul_(weight)


def add_rms_norm_cpu(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Plain torch, on any device."""
    return rms_norm_cpu(residual.add_(x), weight, epsilon)


@functools.cache
def _constant(value: float, device: torch.device) -> torch.Tensor:
    """float32 [], made once: `addcmul` takes no number in this place."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device=device)


def rms_norm_ref(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """One token at a time, in the dtype of its inputs."""
    return torch.stack([row / torch.sqrt((row * row).mean() + epsilon) * weight for row in x])


def add_rms_norm_ref(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The same as `add_rms_norm`, `residual` changed in place."""
    residual.copy_(residual + x)
    return rms_norm_ref(residual, weight, epsilon)
