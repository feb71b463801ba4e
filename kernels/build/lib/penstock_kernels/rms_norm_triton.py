"""RMS normalisation on a GPU: one program a token, the whole row in registers. Statistics and products in float32.

Shapes: T tokens, C channels.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from penstock_kernels.overlap import launch_options, wait_for_inputs
from penstock_kernels.triton_support import power_of_two

# Channels up to which one of these many warps holds a row without spilling.
_CHANNELS_PER_WARP = 512
_MAX_WARPS = 16


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See `rms_norm`."""
    return _launch(x.contiguous(), None, weight, epsilon)


def add_rms_norm_triton(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See `add_rms_norm`. `residual` must be contiguous."""
    assert residual.is_contiguous()
    return _launch(x.contiguous(), residual, weight, epsilon)


def _launch(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    num_tokens, channels = x.shape
    out = torch.empty_like(x)
    _rms_norm_kernel[(num_tokens,)](
        x,
        out if residual is None else residual,
        weight,
        out,
        epsilon,
        channels=channels,
        adds=residual is not None,
        block=power_of_two(channels),
        num_warps=num_warps(channels),
        **launch_options(x.device),
    )
    return out


def num_warps(channels: int) -> int:
    """Depends on the channels alone, or a token's sum would be rounded in another order in a larger batch."""
    return min(max(power_of_two(channels) // _CHANNELS_PER_WARP, 1), _MAX_WARPS)


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, C]
    residual_ptr,  # [T, C], read and written if `adds`
    weight_ptr,  # [C]
    out_ptr,  # [T, C]
    epsilon,
    channels: tl.constexpr,
    adds: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * channels
    column = tl.arange(0, block)
    inside = column < channels
    wait_for_inputs(overlaps)
    x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if adds:
        x += tl.load(residual_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
        # What is normalised is what the residual holds, rounded to its dtype.
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / channels + epsilon)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + column, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)
