"""SiLU of the gate times the up projection, from one tensor that holds both: y = g / (1 + exp(-g)) * u.

Shapes: T tokens, F intermediate size.
"""

import torch

from penstock_kernels.triton_support import uses_triton


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, F] from `gate_up` [T, 2 F], gate first."""
    if uses_triton(gate_up):
        from penstock_kernels.silu_mul_triton import silu_mul_triton

        return silu_mul_triton(gate_up)
    return silu_mul_cpu(gate_up)


def silu_mul_cpu(gate_up: torch.Tensor) -> torch.Tensor:
    """Plain torch, on any device.

    Spelled out because torch's own silu on a CPU rounds the elements at the end of a thread's range differently from
    the others, so that a token's result would depend on how many tokens share the step.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.neg(gate).exp_().add_(1.0)
    return torch.div(gate, out, out=out).mul_(up)


def silu_mul_ref(gate_up: torch.Tensor) -> torch.Tensor:
    """One element at a time, in the dtype of its input."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in gate.shape)).tolist():
        g = gate[tuple(index)]
        out[tuple(index)] = g / (1 + torch.exp(-g)) * up[tuple(index)]
    return out
