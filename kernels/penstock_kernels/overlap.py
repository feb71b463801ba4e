"""Lets a kernel begin while the one before it on the stream ends (programmatic dependent launch), from Hopper on.

A kernel that is launched with `launch_options` calls `wait_for_inputs` before it reads what another kernel has written
and before it writes anything. All of them must: a kernel's end means the end of those before it only as each has waited.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import functools

import torch
import triton
import triton.language as tl

_HOPPER = 9


@functools.cache
def launch_options(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a launch: the kernel's own `overlaps`, and what makes the driver do it."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _HOPPER:
        return {"overlaps": True, "launch_pdl": True}
    return {"overlaps": False}


@triton.jit
def let_next_begin(overlaps: tl.constexpr):
    """Once every program of this kernel has come here, programs of the next may take what room is left."""
    if overlaps:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(overlaps: tl.constexpr):
    """Waits until the kernel before has ended and its stores are visible."""
    if overlaps:
        tl.extra.cuda.gdc_wait()
