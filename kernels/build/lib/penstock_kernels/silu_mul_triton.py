"""SiLU of the gate times the up projection on a GPU, in float32. Shapes: T tokens, F intermediate size."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from penstock_kernels.overlap import launch_options, wait_for_inputs
from penstock_kernels.triton_support import power_of_two

# Elements of a token that one program computes.
_BLOCK = 1024


def silu_mul_triton(gate_up: torch.Tensor) -> torch.Tensor:
    """See `silu_mul`."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    block = min(_BLOCK, power_of_two(size))
    grid = (num_tokens, -(-size // block))
    options = launch_options(gate_up.device)
    _silu_mul_kernel[grid](gate_up.contiguous(), out, size=size, block=block, num_warps=4, **options)
    return out


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr,  # [T, 2 F]
    out_ptr,  # [T, F]
    size: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    wait_for_inputs(overlaps)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < size
    gate_ptr = gate_up_ptr + token * (2 * size) + column
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + size, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * size + column, result.to(out_ptr.dtype.element_ty), mask=inside)
